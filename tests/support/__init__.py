"""What several tests need; no test stands here, and no test imports a test.

memory and tables    random_tables, random_scenes, address_spaces, access_product
a guest's programs   guest_layouts, guest_programs, cached_translations, guest_runs, host_programs, flat_guest
the VMM's tables     vmm_tables
walks, TLBs          walk_comparison, tlb_modes
two VMMs             two_vmms
APICs                apic_tables, apic_guest, ipi_programs, tpr_ways
hostile calls        public_calls, hostile_values, hostile_objects, hostile_arguments, hostile_calls
traces               event_lists, trace_files, system_traces, recordings
"""
