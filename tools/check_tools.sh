#!/bin/sh
# Says which of the things that a build needs are missing on this machine, and the line that installs them.
# Usage: tools/check_tools.sh PYTHON
python=${1:-python3}
missing=

need() { # PACKAGE WHAT
    echo "fastmmu: missing: $2" >&2
    missing="$missing $1"
}

if ! command -v "$python" >/dev/null 2>&1; then
    need "python3 python3-venv python3-dev" "$python (Python 3.11 or newer, its venv module and its headers)"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "fastmmu: $python is $("$python" --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.11" >&2
    exit 1
else
    name=python3
    case $("$python" -c 'import sys; print(sys.base_prefix, "python3.%d" % sys.version_info[1])') in
        "/usr $(basename "$(readlink -f /usr/bin/python3)")") ;;            # Debian's default python3
        "/usr "*) name=$("$python" -c 'import sys; print("python3.%d" % sys.version_info[1])') ;;
    esac
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need "$name-venv" "Python's venv module"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        need "$name-dev" "Python's C headers (Python.h)"
fi

if ! command -v "${CC:-cc}" >/dev/null 2>&1; then
    need "gcc libc6-dev" "a C compiler (${CC:-cc})"
elif ! echo '#include <stdlib.h>' | ${CC:-cc} -E - >/dev/null 2>&1; then
    need "libc6-dev" "the C library's headers (stdlib.h)"
fi

[ -z "$missing" ] && exit 0
echo "fastmmu: on Debian or Ubuntu this installs what is missing:" >&2
echo "    sudo apt-get install$missing" >&2
exit 1
