# Stops a test process's server when that process is gone, however it ended.
#
#   $1  data folder
#   $2  cluster folder
#   $3  keep: for the others, stop only as the last one out; remove: stop, then delete both folders
#
# Standard input is a pipe from the test process, and end of file is its end.
cat >/dev/null

# Locks an open file; the lock stays with it when the tool has ended. flock [-n] <number>.
lock() {
    if command -v flock >/dev/null; then
        flock -x "$@"
    elif [ "$1" = -n ]; then
        perl -e 'open(F, ">>&=", $ARGV[0]) && flock(F, 2 | 4) or exit 1' "$2"
    else
        perl -e 'open(F, ">>&=", $ARGV[0]) && flock(F, 2) or exit 1' "$1"
    fi
}

# Whether the process is a server of this cluster (a zombie has no command line).
ours() {
    if [ -d /proc/self ]; then
        tr '\0' ' ' <"/proc/$1/cmdline"
    else
        ps -o command= -p "$1"
    fi | grep -qF -- "$2"
}

# The operating system closes the ended process's files one by one, so its lock may outlive its pipe by a moment.
tries=25
while :; do
    exec 8>>"$1/start.lock" 9>>"$1/users.lock"
    lock 8 && lock -n 9 && break
    exec 8>&- 9>&-
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || exit 0
    sleep 0.02
done

read -r pid <"$2/postmaster.pid" && if ours "$pid" "$2"; then
    kill -s CONT "$pid"
    if [ "$3" = remove ]; then kill -s QUIT "$pid"; else kill -s INT "$pid"; fi
    tries=1000
    while ours "$pid" "$2" && [ "$tries" -gt 0 ]; do
        tries=$((tries - 1))
        [ "$tries" = 500 ] && kill -s QUIT "$pid"
        sleep 0.02
    done
fi

# The cluster may lie elsewhere, in a folder that is its own.
[ "$3" = remove ] && rm -rf "$1" "${2%/*}"
exit 0
