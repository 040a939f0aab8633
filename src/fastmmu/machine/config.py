"""What is simulated: one scheme, one TLB, one guest."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import msgspec
import numpy as np

from fastmmu._arguments import shown
from fastmmu.cache import CacheDescription, caches
from fastmmu.cache.frame_map import host_frame_plan
from fastmmu.errors import ConfigError, WrongTypeError
from fastmmu.kvm_versions import KvmRules, kvm_rules
from fastmmu.machine.agile_policy import refuse_agile
from fastmmu.machine.config_fields import Fields, refused_of
from fastmmu.machine.frame_plan import MOST_MEMORY, frame_plan
from fastmmu.machine.thp_plan import thp_plan
from fastmmu.machine.topology import topology
from fastmmu.sizes import page_size, parse_bytes
from fastmmu.tlb.geometry import Geometry, geometry

if TYPE_CHECKING:
    from fastmmu.kvm.policy.kvm import Kvm

__all__ = ["Config", "as_config"]

P = ParamSpec("P")
C = TypeVar("C")
R = TypeVar("R")

APIC_BASE = 0xFEE0_0000


def _takes_fields_of(maker: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[Concatenate[C, P], R]]:
    """For type checkers: a method with the parameters of a constructor."""
    return lambda method: method


class Config(Fields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration of the simulator; immutable, ``config.replace(vpid=True)`` gives a changed copy.

    :param mmu: ``"native"`` (no VMM), ``"shadow"`` (shadow paging), ``"ept"`` or ``"agile"`` (agile paging, ISCA
        2016: shadow tables, and nested paging of what the guest writes often). :param agile: its policy
        (docs/agile.md), ``"writes=2 interval=4096 back=written begin=shadow"`` or a part of that.
    :param vpid: the guest's translations are tagged with a VPID, so that VM entry and exit flush nothing.
    :param pages: ``"4k"``; ``"2m"``: every user page is 2 MB; ``"thp"``: 4 KB pages that the guest kernel collapses
        into a 2 MB page once `thp_threshold` of its 512 pages have been touched, or does as `thp` says.
    :param thp: with ``pages="thp"`` what the guest kernel makes huge (docs/frames.md): ``"always"``, ``"madvise"``
        (where the trace has Op.MADVISE_HUGE), ``"never"``; ``"always+khugepaged:4096/1000000"``: khugepaged looks at
        4096 pages after each million accesses, with ``:255`` behind it max_ptes_none, which is 511 else. None: as
        `thp_threshold` says.
    :param defrag: who waits for memory to be compacted where no 2 MB are free: nobody, ``"never"``; ``"madvise"``,
        ``"always"``; ``"defer"``: it is done behind a first touch. Needs `thp`, and `frames` of a buddy allocator.
    :param unmovable: share of the fragmented blocks of `frames` in which what is in use cannot move.
    :param host_pages: the VMM's backing of guest memory, ``"4k"``, ``"2m"`` or ``"untouched"`` (4k, each page given by
        the host at its first touch); None: 4k for 4k, else 2m. These and `pages` in any case of letters.
    :param kvm: what KVM does of its own choice (kvm_policy.md): ``"slides"``, shadow tables always in sync and nothing
        else; ``"6.1"``, of Linux 6.1: unsync page tables, prefetch, write flooding, fast page faults, MMIO marks.
        It is the column of tlb.md §7, too: the slides' KVM flushes single contexts, that of 6.1 all of them
        (vmx_flush_tlb_all).
    :param vendor: ``"amd"``: nested paging of AMD's processors, as KVM drives it, in the place of an EPT (npt.md; exits
        are ``ExitReason.NPF``): entries always have A/D flags, whatever `ept_ad` says; CR4 is intercepted, its reads
        too; there is no PML. Its CR8 is V_TPR of the VMCB: writes are intercepted while the TPR blocks what waits, in
        place of a threshold (kvm_policy.md §14). Each vCPU runs under an ASID, whatever `vpid` says (tlb.md §11).
    :param asids: ASIDs of a processor of AMD, the host's 0 included (CPUID 8000000AH EBX); sev_asids: of them, the
        lowest, those of encrypted guests (8000001FH ECX); flush_by_asid: it flushes one (8000000AH EDX bit 6), else a
        vCPU that must flush gets a new one. Of a :class:`Host`: those of its first machine.
    :param unsync: shadowed page tables may go out of sync until the guest flushes; None: as `kvm` says.
    :param ept_ad, pml: EPT A/D flags, page-modification log (used while a slot is logged; needs `ept_ad`).
    :param tdp_mmu: EPT by the TDP MMU, else by the older one, which prefetches (with ``kvm="6.1"``).
    :param host_memory: the host's memory for the guest, bytes or text; beyond it, pages that were not used of late go
        to disk and come back at their next use. The guest's pages are ``"untouched"`` at first, then.
    :param host_reclaim: which page goes: ``"clock"``, the first not used since a clock came by last; ``"lru"``, of the
        oldest generation the one seen used longest ago (Linux' multi-generational LRU).
    :param ageing: what becomes of EPT entries without A flags when the host asks whether their page is in use:
        ``"track"``: their rights go and come back at the next access (Linux 6.1); ``"zap"``: they go; ``"old"``:
        nothing, no page looks used; None: track with ``kvm="6.1"``, else zap.
    :param vmm: ``"kernel"``: the kernels of this package do what KVM does; ``"python"``: :class:`fastmmu.Kvm` does the
        same, to be read; or a class of your own that derives from it and overrides what it does otherwise.
    :param noncoherent_dma: a device that writes memory past the caches is assigned: EPT takes the guest's MTRRs, and
        its CR0.CD unless `cd_quirk` (KVM_X86_QUIRK_CD_NW_CLEARED); without one all memory is write-back.
    :param table_pages: shadow pages (or pages of the older MMU) that there may be, KVM's n_max_mmu_pages, at least
        16; 0: no limit.
    :param unrestricted_guest: the processor runs a guest over EPT that does not page; without it KVM makes a
        virtual-8086 task of real mode, and an identity table stands in for paging that is off (KVM's vmx_set_cr0,
        init_rmode_identity_map; kvm_policy.md §3.4).
        None: as `kvm`, False for the slides'. AMD's processors run every mode.
    :param identity_map: guest-physical address of that table, above guest memory and below 4 GB; the task state of
        real mode takes the three pages behind it (KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR).
    :param guest_ad_checked: see :class:`fastmmu.Eptp`; False: the processor is Bochs'.
    :param eager_page_split, nx_huge_pages, mmio_caching: KVM's module parameters of these names.
    :param shadow_keys: shadow paging copies the guest's protection keys into its tables, so that it may use them;
        KVM has no such thing, and offers its guests no keys then.
    :param premapped: all tables stand before the first access: no faults, no kernel accesses, no exits to build; not
        with `host_memory`.
    :param tlb: preset of the TLB geometry (tlb.md §9), or a :class:`Geometry`, such as :func:`fastmmu.geometry` makes
        with 2M and 1G arrays, walk caches and guest-physical mappings of any size; ``"strict"`` keeps all that the
        architecture lets a processor keep, and forgets what it must. :param l1d, l1i, stlb: "entries/ways" of the 4 KB
        arrays, or arrays by page size, in place of its own, as in :func:`fastmmu.geometry`. :param replacement:
        of both levels, or of each as in ``"lru,srrip"``: lru, plru, random, random:SEED, srrip, chirp
        (docs/replacement.md), or one that a package has registered; None: the geometry's, which is lru with a preset.
    :param psc, epsc: paging-structure caches of the guest's (or native) tables and of the EPT's, entries of
        PML4E/PDPTE/PDE as in ``"2/4/32"``, one array as in ``"64/fa"``, some levels as in ``"pde 64/4"``, ``"none"``.
    :param gpm: guest-physical mappings: ``"64/fa"``, ``"shared"`` (in the second level), ``"off"``. None of these
        three: the geometry's. What each level found: ``Result.tlb``, by these names.
    :param walk_caches: paging-structure caches and, under EPT, cached guest-physical mappings shorten the walks.
    :param caches: data caches and memory under every reference (docs/caches-in-runs.md): the name of a preset, such as
        ``"skylake"``, a text that changes one, or a :class:`fastmmu.cache.CacheDescription`. Cycles of accesses and
        walks then come from where references are found, ``Result.caches`` says where. None: fixed shares of costs.toml.
        Of one CPU; not with a :class:`Host`.
    :param topology: packages, cores of each, hyperthreads of each core, as in ``"1x2x2"``: the CPUs of a host, or of a
        system trace; hyperthreads of a core follow each other. None: each CPU is a core. A machine alone has one CPU.
    :param shared: what the hyperthreads of a core share, of ``l1``, ``l2``, ``psc``, ``gpm``, as in ``"l2,psc"``, or
        ``"none"``; None: the geometry's, which is l2,psc with a preset.
    :param tlb_extension: what is asked between a miss of both levels and the walk: ``"clustered:8"``,
        ``"coalesced:8"``, ``"range:32"``, ``"pom:16m"``, ``"prefetch:sequential"`` (``distance``, ``recency``,
        ``stride``, ``markov``), or, with ``stlb="none"`` in the place of the second level, an array for all page sizes,
        ``"skewed:1536/12"``, ``"rehash:1536/12"``, ``"mix:1536/12"``; several joined by ``+``, or ``"none"``. None: the
        geometry's, which is none with a preset (docs/tlb-extensions.md).
    :param find_missing_flushes: compare every use of a cached translation with memory; needs ``tlb="strict"``. What is
        found: ``Machine.missing_flushes``, and the counters ``stale_uses`` and ``uses_compared``.
    :param pcid: the guest kernel gives each process a PCID and loads CR3 without flushing.
    :param memory: guest memory, bytes or text such as "64G"; only address space, nothing is allocated for it.
    :param kernel_memory: where the guest kernel takes its own pages from, ``"low"``: 2 MB up; ``"high"``: from the end
        of memory down, out of the way of pages that a trace places (Op.PLACE). Of such a trace it is set.
    :param frames: which frames the guest kernel gives to programs (docs/frames.md): ``"first-touch"``, in order;
        ``"shuffled"``, ``"shuffled:SEED"``; ``"buddy:F"``, ``"buddy:F:SEED"``, a buddy allocator of memory of which the
        free part is fragmented to FMFI F at first; ``"reserve:64k"``, groups of 32k to 2m (PTEMagnet); ``"contiguous"``
        (CA paging); the last two also ``"reserve:64k+buddy:F"``; ``"of:FILE"``, as the
        pages of a recorded guest lay, of ``fastmmu maps GUEST --csv FILE``. Not with ``kernel_memory="high"``.
    :param host_frames: where in memory the host's pages lie, which data caches see: ``"linear"``, ``"shuffled"``,
        ``"shuffled:SEED"``, ``"buddy:F"``, ``"buddy:F:SEED"`` (docs/frames.md); needs `caches`, or `host_thp`.
    :param host_thp: the host's huge pages: ``"always"``, the 2 MB that `host_frames` leaves whole are one page, which
        the VMM maps as one; ``"never"``, none, until :meth:`fastmmu.Vmm.make_huge`. None: as `host_pages` says.
    :param exit_every: an unconditional exit (CPUID) after each so many accesses; 0 = none.
    :param exit_pages: pages of its own that the host reads at each VM exit, under VPID 0.
    :param exit_log: so many VM exits are kept, the last, a record each (64 bytes): :meth:`Machine.exit_log`; 0: none.
    :param tpr: the guest has a local APIC, and this handles it: ``"trap"`` emulates each access to its page;
        ``"patch"`` replaces the instructions that access the TPR, as QEMU's kvmvapic does: whichever vCPU runs one
        first, for all, each of which has its own record of the TPR (a bare guest says where its option ROM is:
        :meth:`GuestApic.enable_vapic`); ``"flexpriority"`` is the TPR shadow and the
        APIC-access page; ``"apicv"`` adds register virtualization, virtual-interrupt delivery and posted interrupts
        (SDM vol. 3, "APIC Virtualization and Virtual Interrupts"; apic.md §2-§7). None: no APIC, no APIC events. It
        stands at FEE00000H, above the guest's memory.
    :param apic_access_page: accesses to the APIC's page are virtualized by the APIC-access page, with
        ``tpr="flexpriority"`` or ``"apicv"``. False: never, so that they are MMIO (KVM's module parameter
        ``flexpriority=0``, with ``"apicv"``). None: as `kvm` does it: with ``"apicv"``; with ``"flexpriority"`` before
        Linux 5.16 alone, since when each of them is emulated, and leaves no mark (kvm_policy.md §14). True: with both.
    :param tpr_shadow: the processor has a TPR shadow; without it CR8 and the x2APIC MSRs exit, too.
    :param tpr_threshold: rule for the threshold, ``"kvm"`` (today's) or ``"slides"`` (the smaller of TPR and IRR).
    :param tpr_patch: ``"per-vcpu"``, a record for each of up to 16 vCPUs; ``"one-vcpu"``, the first version, which has
        one record: it patches a guest whose only vCPU is number 0, and leaves one of several vCPUs alone, all of them.
    :param guest_handler: what the guest does when it is interrupted: ``"eoi"``, end of interrupt alone, or ``"irql"``,
        which raises the TPR to the class of the interrupt and lets higher classes interrupt it; then CLI, end of
        interrupt, the TPR as it was. :param handler_length: accesses of the trace that a handler lasts, after it has
        raised the TPR and before it ends the interrupt. :param apic_id: number of the (first) vCPU.
    :param shootdown: how the guest kernel makes other vCPUs flush (docs/shootdowns.md): ``"ipi"``; ``"pv"``, the VMM
        flushes a vCPU that has no physical CPU, at its next VM entry (KVM_FEATURE_PV_TLB_FLUSH); ``"invlpgb"``,
        AMD's broadcast, of a guest as if its vCPUs had one ASID, which KVM gives to encrypted guests alone.
    :param lazy_tlb: a vCPU that idles keeps its tables, and is not told of flushes (is_lazy); False: it loads the
        kernel's own. :param flush_ceiling: of more pages the whole address space is flushed
        (tlb_single_page_flush_ceiling).

    :raises ConfigError: a value outside these.

    Numbers and truth values may be NumPy's. Every field is checked here, the TLB's arrays as well.

    Threads: immutable; share it.
    """

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if isinstance(value := getattr(self, name), np.generic):
                msgspec.structs.force_setattr(self, name, value.item())
            elif isinstance(value, np.ndarray):
                raise ConfigError(f"Config: {name} is an array; give one value, see help(fastmmu.Config)")
        for name in ("pages", "host_pages"):
            if isinstance(value := getattr(self, name), str):
                msgspec.structs.force_setattr(self, name, page_size(value))
        try:
            msgspec.convert(msgspec.structs.asdict(self), Fields)
        except msgspec.ValidationError as error:
            raise ConfigError(f"Config: {refused_of(self, error)}; see help(fastmmu.Config)") from error
        except UnicodeError as error:
            raise ConfigError(f"Config: a text that is none: {error}; see help(fastmmu.Config)") from error
        if isinstance(self.tlb, str):
            msgspec.structs.force_setattr(self, "tlb", self.tlb.lower())
        try:
            if self.topology is not None:
                msgspec.structs.force_setattr(self, "topology", str(topology(self.topology)))
            arrays, plan = self.geometry, frame_plan(self.frames)
            host_plan = host_frame_plan(self.host_frames)
            if self.thp is not None:
                thp_plan(self.thp)
            caches(self.caches)
            refuse_agile(self)
        except ConfigError as error:
            raise ConfigError(f"Config: {error}") from error
        memory = self._bytes("memory")
        if self.find_missing_flushes and not arrays.unbounded:
            raise ConfigError(
                f"Config: find_missing_flushes with tlb={arrays.name!r}, which forgets more than it must and hides "
                'what is missing; use tlb="strict"'
            )
        if not 1 << 26 <= memory <= 1 << 45:
            raise ConfigError(f"Config: memory={self.memory!r} is outside 64M..32T")
        if host_plan[0] is not None and self.caches is None and self.host_thp is None and self.mmu != "native":
            raise ConfigError(
                f"Config: host_frames={self.host_frames!r} is seen by data caches and by host_thp=; give one"
            )
        if self.host_thp is not None and (self.host_pages is not None or self.host_memory is not None):
            raise ConfigError(
                f"Config: host_thp={self.host_thp!r} says which pages of the host are huge; leave out host_pages= and "
                "host_memory="
            )
        if plan.policy != "first-touch" and (memory > MOST_MEMORY or self.kernel_memory == "high"):
            raise ConfigError(
                f"Config: frames={self.frames!r} needs memory of at most 1T, and a trace that does not place its pages "
                '(kernel_memory="low")'
            )
        if self.thp is not None and (self.pages != "thp" or self.premapped or self.kernel_memory == "high"):
            raise ConfigError(
                f'Config: thp={self.thp!r} needs pages="thp", tables that are not premapped, and a trace that does not '
                'place its pages (kernel_memory="low")'
            )
        if self.defrag != "never" and (self.thp is None or plan.policy == "first-touch"):
            raise ConfigError(f'Config: defrag={self.defrag!r} needs thp=, and frames= other than "first-touch"')
        if self.host_memory is not None and not 1 <= self._bytes("host_memory") <= 1 << 46:
            raise ConfigError(f"Config: host_memory={self.host_memory!r} is outside 1..64T; a host has 64k at least")
        if self.premapped and self.host_memory is not None:
            raise ConfigError("Config: premapped=True, all tables stand, and host_memory, pages come and go; give one")
        if self.identity_map & 0xFFF or not 0 < self.identity_map <= 0xFFFF_C000:
            raise ConfigError(
                f"Config: identity_map={self.identity_map:#x} is no page with three more behind it below 4 GB; "
                "give a multiple of 4096 up to 0xffffc000"
            )
        if 0 < self.table_pages < 16:
            raise ConfigError(
                f"Config: table_pages={self.table_pages} is too few for the tables of one access; at least 16"
            )
        if self.sev_asids + 2 > self.asids:
            raise ConfigError(
                f"Config: asids={self.asids}, sev_asids={self.sev_asids} leave none; give 2 more at least"
            )
        if self.pml and not (self.mmu == "ept" and self.ept_ad and self.vendor == "intel"):
            raise ConfigError('Config: pml=True needs mmu="ept", ept_ad=True and vendor="intel": it logs EPT D flags')
        known = self.vmm in ("kernel", "python") if isinstance(self.vmm, str) else hasattr(self.vmm, "handle")
        if not known or not isinstance(self.vmm, (str, type)):
            raise ConfigError(
                f"Config: vmm={shown(self.vmm)}: choose 'kernel', 'python' or a class that derives from fastmmu.Kvm"
            )
        if self.tpr is not None and memory > APIC_BASE:
            raise ConfigError(f"Config: memory={self.memory!r} covers the APIC at {APIC_BASE:#x}; give at most 3G")
        if self.tpr in ("flexpriority", "apicv") and self.vendor == "amd":
            raise ConfigError(
                f'Config: vendor="amd" with tpr={self.tpr!r}, which is Intel\'s, and AVIC is not modelled; use '
                'tpr="trap" or "patch"'
            )
        if self.shootdown == "invlpgb" and self.mmu != "native" and (self.vendor, self.mmu) != ("amd", "ept"):
            raise ConfigError(
                'Config: shootdown="invlpgb" is of processors of AMD, natively or with nested paging; use vendor="amd" '
                'and mmu="ept"'
            )
        if self.tpr in ("flexpriority", "apicv") and not self.tpr_shadow:
            raise ConfigError(f'Config: tpr="{self.tpr}" needs tpr_shadow=True')

    def _bytes(self, name: str) -> int:
        try:
            return parse_bytes(getattr(self, name))
        except ConfigError as error:
            raise ConfigError(f"Config: {name}={error}") from error

    @_takes_fields_of(Fields)
    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed.

        :raises ConfigError: a value outside its field's. :raises TypeError: there is no such field.
        """
        for name in changes:
            if name not in self.__struct_fields__:
                near = difflib.get_close_matches(name, self.__struct_fields__, n=1)
                hint = f"; did you mean {near[0]}?" if near else "; see help(fastmmu.Config)"
                raise TypeError(f"Config has no field {name!r}{hint}")
        return msgspec.structs.replace(self, **changes)

    @property
    def native(self) -> Config:
        """The same processor and guest without a VMM: what the cycles of a scheme are set against."""
        return self.replace(**{field: _DEFAULTS[field] for field in VMM_FIELDS}, tpr="trap" if self.tpr else None)

    @property
    def geometry(self) -> Geometry:
        """The arrays of the TLB."""
        return geometry(self.tlb, l1d=self.l1d, l1i=self.l1i, stlb=self.stlb, replacement=self.replacement,
                        psc=self.psc, epsc=self.epsc, gpm=self.gpm, walk_caches=self.walk_caches,
                        shared=self.shared, extension=self.tlb_extension)  # fmt: skip

    @property
    def cache_description(self) -> CacheDescription | None:
        """The data caches under every reference; None: none are simulated."""
        return caches(self.caches)

    @property
    def tlb_name(self) -> str:
        """Name of the TLB's geometry."""
        return self.tlb if isinstance(self.tlb, str) else self.tlb.name

    @property
    def name(self) -> str:
        """Name of the scheme in tables: native, shadow, shadow+VPID, EPT, EPT+VPID."""
        scheme = "EPT" if self.mmu == "ept" else self.mmu
        return f"{scheme}+VPID" if self.vpid and self.mmu != "native" else scheme

    def fields(self) -> dict[str, Any]:
        """Its fields in types that a file takes; a class by its name."""
        found: dict[str, Any] = msgspec.to_builtins(self, enc_hook=lambda value: value.__qualname__)
        return found | {"caches": None if self.caches is None else str(self.caches)}

    @property
    def vmm_class(self) -> type[Kvm]:
        """The class of a VMM in Python."""
        from fastmmu.kvm.policy.kvm import Kvm

        return Kvm if self.vmm == "python" else self.vmm

    @property
    def apic_page(self) -> Literal["mapped", "emulated", "none"]:
        """What stands at the APIC's page: the APIC-access page, one that is never mapped, or none."""
        if self.tpr not in ("flexpriority", "apicv") or self.apic_access_page is False:
            return "none"
        if self.tpr == "apicv" or self.apic_access_page or not self.rules.apic_page_with_apicv:
            return "mapped"
        return "emulated"

    @property
    def rules(self) -> KvmRules:
        """What its version of KVM does, rule by rule."""
        return kvm_rules(self.kvm)

    @property
    def min_asid(self) -> int:
        """The first ASID that a guest may have."""
        return 1 + (self.sev_asids if self.rules.asids_above_sev else 0)

    @property
    def unrestricted(self) -> bool:
        """Whether a guest over EPT runs without paging as it is."""
        if self.vendor == "amd":
            return True
        return self.rules.unrestricted_guest if self.unrestricted_guest is None else self.unrestricted_guest

    @property
    def memory_bytes(self) -> int:
        """Guest memory in bytes, a multiple of 2 MB."""
        return parse_bytes(self.memory) & ~0x1FFFFF

    @property
    def backing(self) -> str:
        """Page size with which the VMM maps guest memory: "4k" or "2m"."""
        if self.host_thp is not None:
            return "2m"
        if self.host_pages:
            return "2m" if self.host_pages == "2m" else "4k"
        return "4k" if self.pages == "4k" else "2m"

    @property
    def backing_bytes(self) -> int:
        """Bytes of such a page."""
        return 1 << (21 if self.backing == "2m" and self.host_thp is None else 12)


VMM_FIELDS = (
    "mmu", "agile", "vpid", "host_pages", "host_frames", "host_thp", "kvm", "vendor", "asids", "sev_asids",
    "flush_by_asid", "unsync", "ept_ad", "pml",
    "tdp_mmu", "eager_page_split", "nx_huge_pages", "mmio_caching", "shadow_keys", "guest_ad_checked",
    "unrestricted_guest", "identity_map",
    "host_memory", "host_reclaim", "ageing", "noncoherent_dma", "cd_quirk", "table_pages", "exit_pages", "exit_log",
    "tpr_shadow", "apic_access_page", "tpr_threshold", "tpr_patch", "vmm",
)  # fmt: skip
"""Fields that say what the VMM does, or the processor for it: a native run is the same whatever they are."""
_DEFAULTS = msgspec.structs.asdict(Config())


def as_config(config: object) -> Config:
    """The configuration that was given, None: the default one.

    :raises WrongTypeError: it is none.
    """
    if config is None:
        return Config()
    if not isinstance(config, Config):
        how = "**config" if isinstance(config, dict) else 'mmu="ept"'
        raise WrongTypeError(f"config={shown(config)} is a {type(config).__name__}; give fastmmu.Config({how})")
    return config
