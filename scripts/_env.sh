# Sourced by the scripts beside it: makes the environment of a clone, and only when something changed.
#
#   ROOT     the clone
#   VENV     its virtual environment ($FEDQ_VENV, default .venv)
#   PY       the python in it
#
#   make_env EXTRAS   creates VENV and installs this project, editable, with the given extras
#
# Everything that is said goes to stderr, so that a script's stdout stays its own.

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="${FEDQ_VENV:-$ROOT/.venv}"
PY="$VENV/bin/python"

say() { printf '%s\n' "$*" >&2; }

# A python that is new enough and has venv: $PYTHON if set, else the first that fits. 3.14 comes last, since the
# embedded server has no wheel for it yet.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python python3.14}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    say "fedq needs Python 3.11 or newer with its venv module (on Debian: apt install python3-venv)."
    say "None was found; name one with PYTHON=/path/to/python3.11."
    return 1
}

# Installed are the top folders; what decides over a new installation is what is declared, not the code.
env_stamp() {
    { printf '%s\n' "$ROOT" "$1"; "$PY" -VV; cat "$ROOT/pyproject.toml" "$ROOT/setup.py"; } | "$PY" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

link_for_typing() {
    local name
    mkdir -p "$VENV/typed/fedq"
    for name in apps relay node cli; do ln -sfn "$ROOT/$name" "$VENV/typed/fedq/$name"; done
}

make_env() {
    local extras="$1" python stamp
    stamp="$VENV/.fedq-installed-$extras"
    if ! "$PY" -c '' >/dev/null 2>&1; then
        python="$(find_python)" || return 1
        say "making $VENV with $("$python" -V)"
        rm -rf "$VENV"
        "$python" -m venv "$VENV" || return 1
    fi
    link_for_typing
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(env_stamp "$extras")" ]; then
        say "installing fedq[$extras] into $VENV"
        # --quiet still shows errors; stdout belongs to the script that asked.
        "$PY" -m pip install --quiet --disable-pip-version-check --editable "$ROOT[$extras]" >&2 || {
            say "The installation failed; what pip said stands above. Needed are PyPI and, for fedq[embedded], Linux x86-64 or macOS arm64."
            return 1
        }
        env_stamp "$extras" >"$stamp"
    fi
}
