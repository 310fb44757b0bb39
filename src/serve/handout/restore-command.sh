#!/bin/sh
# Fetches WAL from pghoard for a recovering PostgreSQL. Needs curl and nothing else.
#
#     restore_command = 'sh /PATH/OF/THIS/FILE %f %p'
#
# PostgreSQL takes any code from 1 to 125 for "there is no such file", which ends a recovery. So 1
# is only said when the daemon confirms that the file does not exist; whatever cannot be known is
# 255, which stops the recovery with an error. A standby would stop for good at that: there it is
# tried for a minute, and then 1 makes the standby ask again.
#
# Where a name and a password are wanted, curl reads them from a netrc file, so that they are in no
# list of processes:
#
#     machine backup.example.com login NAME password PASSWORD
#
# That is ~/.netrc of the user the server runs as, unless another file is named here or in the
# environment of the server (PGHOARD_NETRC; PGHOARD_URL, PGHOARD_CACERT and PGHOARD_WAITS, seconds
# between tries, likewise). It should be readable by that user alone.
#
# The token of a hand-out, where there is one, takes their place until it expires; then this file
# is the secret.

url=@URL@
site=@SITE@
netrc=@NETRC@
cacert=@CACERT@
token=@TOKEN@

url=${PGHOARD_URL:-$url}
netrc=${PGHOARD_NETRC:-$netrc}
cacert=${PGHOARD_CACERT:-$cacert}

say() {
    echo "pghoard: $*" >&2
}

file=$1
target=$2
if [ $# -ne 2 ] || [ -z "$file" ] || [ -z "$target" ]; then
    say "expected the name of a file and where to put it: %f %p"
    exit 255
fi
draft=$target.pghoard-draft
head=$target.pghoard-head

clean() {
    rm -f "$draft" "$head"
}

# For curl's standard input, so that the token is in no list of processes.
authorization() {
    if [ -n "$token" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$token"
    fi
}

# 0: the file is there; 1: it does not exist; 255: it cannot be known.
fetch() {
    clean
    set -- -q -g -sS --connect-timeout 10 --speed-limit 1 --speed-time 90
    if [ -n "$token" ]; then
        :
    elif [ -n "$netrc" ]; then
        set -- "$@" --netrc-file "$netrc"
    else
        set -- "$@" --netrc-optional
    fi
    if [ -n "$cacert" ]; then
        set -- "$@" --cacert "$cacert"
    fi
    if [ -n "$cluster" ]; then
        set -- "$@" -H "x-pghoard-system-id: $cluster"
    fi
    set -- "$@" -K - -H 'x-pghoard-body: 1' -D "$head" -o "$draft" -w '%{http_code}'
    status=$(authorization | curl "$@" "$url/$site/archive/$file") || return 255
    case $status in
    200)
        # Where sync takes no file, all is synced; where there is none, PostgreSQL asks again.
        sync "$draft" 2>/dev/null || sync 2>/dev/null
        mv -f "$draft" "$target" || return 255
        return 0
        ;;
    404)
        if grep -qi '^x-pghoard-absent: *true' "$head"; then
            return 1
        fi
        ;;
    esac
    say "$file: HTTP status $status from $url: $(head -c 300 "$draft" 2>/dev/null)"
    return 255
}

trap clean EXIT
trap 'exit 255' HUP INT TERM

# The data directory is where PostgreSQL runs this. Its cluster is told, where od can read it: a
# site that was moved to another may have left the cluster behind.
cluster=$(od -A n -t u8 -N 8 global/pg_control 2>/dev/null | tr -d ' \n')
if [ -e standby.signal ]; then
    waits='1 2 4 8 10 10 10 15'
else
    waits='5 5'
fi
waits=${PGHOARD_WAITS-$waits}
for wait in $waits 0; do
    fetch
    case $? in
    0)
        exit 0
        ;;
    1)
        say "$file: confirmed not to exist"
        exit 1
        ;;
    esac
    if [ "$wait" -ne 0 ]; then
        sleep "$wait"
    fi
done
if [ -e standby.signal ]; then
    exit 1
fi
exit 255
