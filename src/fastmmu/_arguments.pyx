"""Arguments of public calls, checked once where Python enters, so that kernels can take them as they are.

    whole, within, word        a number; of a range; of 64 bits
    linear_address, physical_address, guest_physical_address, page_address
                               one of 64 bits that is canonical; of 52 bits; of 57; of 52 and a multiple of 4 KB
    shown, counted             a value for a message, short
    flag, choice, instance     true or false; one of a few words; an object of a class
    many                       the items of something that can be gone through
    bytes_in, bytes_out, words_in, words_out   arrays of uint8 or uint64, to read or to write

A number is an int, a NumPy integer, a member of an IntEnum or whatever else has ``__index__``. A bool is none where
more than one bit is asked for, floating point and text never are. A flag is a bool, NumPy's too, or the number 0 or 1.
Arrays come through the buffer protocol: of this type, in native byte order, contiguous and aligned; nothing is
converted, because a copy would be a surprise for an array of many gigabytes.

What is of the wrong type raises :class:`~fastmmu.errors.WrongTypeError`; a value out of range raises the error of the
caller. Every message names the argument and the value, in few characters whatever it is.
"""

from libc.stdint cimport uint8_t, uint64_t, uintptr_t

from itertools import islice

import numpy as np

from fastmmu.errors import FastmmuError, StateError, WrongTypeError

cdef extern from "Python.h":
    bint PyLong_CheckExact(object)
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFFULL

cdef extern from *:
    const uint64_t MOST_64 "0xFFFFFFFFFFFFFFFFULL"
    const uint64_t MOST_57 "0x1FFFFFFFFFFFFFFULL"
    const uint64_t MOST_52 "0xFFFFFFFFFFFFFULL"

cdef enum:
    MOST_SHOWN = 80             # characters of a value in a message
    MOST_ITEMS = 1 << 20


cpdef str shown(object value):
    """A value for a message: short, and without an error, whatever it is."""
    try:
        if isinstance(value, bool) or not isinstance(value, int):
            text = repr(value)
        elif value.bit_length() > 256:
            text = f"a number of {value.bit_length()} bits"
        else:
            text = str(int(value)) if -10 < value < 10 else hex(value)
        text = " ".join(text.split())
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN - 3]}..."


cpdef str counted(object number):
    """A count for a message: in decimal, unless its digits say nothing any more."""
    return str(number) if number.bit_length() <= 128 else shown(number)


cdef object wrong_type(str name, str wanted, object value):
    return WrongTypeError(f"{name} must be {wanted}, not {shown(value)} ({type(value).__name__})")


cpdef object whole(str name, object value):
    """The int that is meant."""
    if PyLong_CheckExact(value):
        return value
    if isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if isinstance(value, int):
        return int.__index__(value)         # that of a subclass may be anything
    if not isinstance(value, np.integer) and not hasattr(type(value), "__index__"):
        raise wrong_type(name, "an integer", value)
    try:
        return int.__index__(value.__index__())
    except Exception as error:
        raise wrong_type(name, "an integer", value) from error


cdef object outside(str name, object number, uint64_t low, uint64_t high, object kind):
    if low == 0 and high > 0xFFFF and high & (high + 1) == 0:
        return kind(f"{name}={shown(number)} does not fit {int(high).bit_length()} bits")
    if 0 < low and number < low and high >> 62:     # no limit that anybody meets
        return kind(f"{name}={counted(number)}: give at least {low}")
    if high >= 1000000:
        return kind(f"{name}={shown(number)} is outside {low:#x}..{high:#x}")
    return kind(f"{name}={number if -1000000 < number < 1000000 else shown(number)} is outside {low}..{high}")


cpdef uint64_t within(str name, object value, uint64_t low, uint64_t high, object kind=StateError) except? 0xBAD:
    """A number from low to high."""
    cdef object number = whole(name, value)
    cdef uint64_t found
    try:
        found = PyLong_AsUnsignedLongLong(number)
    except OverflowError:
        raise outside(name, number, low, high, kind) from None
    if not low <= found <= high:
        raise outside(name, number, low, high, kind)
    return found


cdef uint64_t word(str name, object value) except? 0xBAD:
    return within(name, value, 0, MOST_64)


cdef uint64_t linear_address(str name, object value) except? 0xBAD:
    # of the widest paging mode: whoever knows a narrower one checks that, too
    cdef uint64_t found = within(name, value, 0, MOST_64)
    if found >> 56 and found >> 56 != 0xFF:
        raise StateError(f"{name}={found:#x} is no linear address: bits 63:57 must equal bit 56")
    return found


cdef uint64_t physical_address(str name, object value) except? 0xBAD:
    return within(name, value, 0, MOST_52)


cdef uint64_t page_address(str name, object value) except? 0xBAD:
    cdef object number = whole(f"{name}, a multiple of 4 KB,", value)
    if not 0 <= number <= <object> MOST_52:
        raise StateError(f"{name}={shown(number)} does not fit 52 bits; give a multiple of 4 KB")
    if number & 0xFFF:
        raise StateError(f"{name}={number:#x} is not aligned to 4 KB")
    return number


cdef uint64_t guest_physical_address(str name, object value) except? 0xBAD:
    # what the widest EPT walk takes in; of a processor they have 52 bits
    return within(name, value, 0, MOST_57)


cpdef bint flag(str name, object value) except -1:
    """True or false."""
    if value is True or value is False:
        return value is True
    if isinstance(value, np.bool_):
        return bool(value)
    if not isinstance(value, (int, np.integer)):
        raise wrong_type(name, "True or False", value)
    if value not in (0, 1):
        raise StateError(f"{name}={shown(value)} is neither True nor False")
    return value == 1


cpdef object choice(str name, object value, object choices, object kind=StateError):
    """One of a few words: itself, or where choices are a dict what it stands for."""
    if isinstance(value, str):
        word = str.__str__(value)
        if word in choices:
            return choices[word] if isinstance(choices, dict) else word
    elif not (value is None and None in choices):
        raise wrong_type(name, f"one of {listed(choices)}", value)
    else:
        return choices[None] if isinstance(choices, dict) else None
    raise kind(f"{name}={shown(value)}: choose from {listed(choices)}")


cdef str listed(object choices):
    return ", ".join([each if isinstance(each, str) else repr(each) for each in choices])


cpdef object instance(str name, object value, object kind):
    """The value, which is of this class."""
    if not isinstance(value, kind):
        raise wrong_type(name, f"a {kind.__name__}", value)
    return value


cpdef list many(str name, object values, object kind=StateError):
    """The items, at most 1048576, as a list."""
    if isinstance(values, (str, bytes)) or not hasattr(type(values), "__iter__"):
        raise wrong_type(name, "a sequence", values)
    try:
        found = list(islice(values, MOST_ITEMS + 1))
    except FastmmuError:
        raise
    except Exception as error:
        raise wrong_type(name, "a sequence", values) from error
    if len(found) > MOST_ITEMS:
        raise kind(f"{name} has more than {MOST_ITEMS} items")
    return found


# ---- arrays -----------------------------------------------------------------------------------------------------

cdef object no_array(str name, object value, str dtype, object kind, object error):
    # why a memoryview could not be had
    if isinstance(value, np.ndarray):
        if value.dtype != dtype or not value.dtype.isnative:
            return kind(f"{name} has dtype {value.dtype}; give np.ascontiguousarray({name}, dtype=np.{dtype})")
        if value.ndim != 1:
            return kind(f"{name} has shape {value.shape}; give a one-dimensional array")
        if not value.flags.c_contiguous:
            return kind(f"{name} is not contiguous; give np.ascontiguousarray({name})")
        return kind(f"{name} is read-only; give a writable array")
    if value is None or isinstance(value, (str, int, float)):
        return wrong_type(name, f"an array of {dtype}", value)
    try:
        memoryview(value)
    except Exception:
        return wrong_type(name, f"an array of {dtype}", value)
    return kind(f"{name} is no array of {dtype}: {error}")


cdef int aligned(str name, const void *at, object kind) except -1:
    if <uintptr_t> at & 7:
        raise kind(f"{name} is not aligned to 8 bytes; give a copy")
    return 0


cdef const uint8_t[::1] bytes_in(str name, object value, object kind=StateError):
    cdef const uint8_t[::1] found = None
    try:
        found = value
    except Exception as error:
        raise no_array(name, value, "uint8", kind, error) from None
    if found is None:
        raise no_array(name, value, "uint8", kind, None)
    return found


cdef uint8_t[::1] bytes_out(str name, object value, object kind=StateError):
    cdef uint8_t[::1] found = None
    try:
        found = value
    except Exception as error:
        raise no_array(name, value, "uint8", kind, error) from None
    if found is None:
        raise no_array(name, value, "uint8", kind, None)
    return found


cdef const uint64_t[::1] words_in(str name, object value, object kind=StateError):
    cdef const uint64_t[::1] found = None
    try:
        found = value
    except Exception as error:
        raise no_array(name, value, "uint64", kind, error) from None
    if found is None:
        raise no_array(name, value, "uint64", kind, None)
    if found.shape[0]:
        aligned(name, &found[0], kind)
    return found


cdef uint64_t[::1] words_out(str name, object value, object kind=StateError):
    cdef uint64_t[::1] found = None
    try:
        found = value
    except Exception as error:
        raise no_array(name, value, "uint64", kind, error) from None
    if found is None:
        raise no_array(name, value, "uint64", kind, None)
    if found.shape[0]:
        aligned(name, &found[0], kind)
    return found
