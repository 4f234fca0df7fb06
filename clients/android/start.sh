#!/bin/sh
# Runs a lean node in Termux: start.sh HOST:PORT DATA PROFILE [OPTIONS]. Not tried on a real phone; see README.md.
set -eu

usage="usage: start.sh HOST:PORT DATA PROFILE [options of mest-fed node]"
link=${1:?"$usage"}
data=${2:?"$usage"}
profile=${3:?"$usage"}
shift 3
certificates=$HOME/.mest-fed-node-certificates

# termux-battery-status is of Termux:API; without it nothing is asked.
if command -v termux-battery-status >/dev/null &&
    termux-battery-status | grep -q '"plugged": *"UNPLUGGED"'; then
    echo "start.sh: the phone is not plugged in" >&2
    exit 1
fi

# The processor goes on while the screen is off, until the node ends, however that is.
termux-wake-lock
trap termux-wake-unlock EXIT
# A shell runs a trap only when the program in its foreground has ended: the node is beside it.
status=0
trap 'status=143' TERM HUP
trap 'status=130' INT
python -m mest_fed.link.node --link "$link" --data "$data" --device "$profile" \
    --certificates "$certificates" --train-when plugged,cool:42,battery:50 "$@" &
node=$!
ended=0
[ "$status" = 0 ] && wait "$node" || ended=$?
if [ "$status" != 0 ]; then  # the wait was broken off
    kill -TERM "$node" 2>/dev/null || :
    wait "$node" || :
    exit "$status"
fi
exit "$ended"
