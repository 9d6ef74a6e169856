#!/bin/busybox sh
# The board's first process: brings the machine up, then runs the stage again and again. Lines that begin with `base:`
# are for whoever reads the console.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /run/sled /sled /dev/drives
# The console is a way in for commands, not for signals to the kernel; a stray Ctrl-S on it must not stop the board.
echo 0 >/proc/sys/kernel/sysrq
stty -ixon -echo </dev/console
echo "base: up"

stage() {
    PYTHONPATH=/usr/lib/stage python3.11 -m "$@"
}

for module in $(cat /etc/modules); do modprobe -q "$module"; done
# An emulated processor that others share takes a minute to check and unpack firmware.
modprobe -q softdog soft_margin=180

# Drives by serial number: the kernel numbers them as they answer.
for controller in /sys/class/nvme/*; do
    serial=$(tr -cd 'A-Za-z0-9._-' <"$controller/serial")
    [ -b "/dev/$(basename "$controller")n1" ] && ln -s "/dev/$(basename "$controller")n1" "/dev/drives/$serial"
done
drives=$(cd /dev/drives && for drive in *; do [ -e "$drive" ] && printf ', "/dev/drives/%s"' "$drive"; done)

if ! mount -t ext4 -o noatime "$(findfs LABEL=sled)" /sled; then
    # Nothing says who the board is, nor where its firmware lies. No shell: whoever has the console has no rights here.
    echo "base: recovery: the partition with the board's identity cannot be mounted; tried again in a minute"
    sleep 60
    reboot -f
fi

. /sled/board.sh
ip link set lo up
/etc/network.sh
echo "base: drives=[${drives#, }]"

[ -e /dev/watchdog ] && watchdog="--watchdog /dev/watchdog"
while :; do
    # shellcheck disable=SC2086 # one word or two, or none
    stage sled_board.stage --store /sled/firmware.toml --run /run/sled $watchdog --prepare /etc/network.sh \
        --start-seconds "$start_seconds" --check-seconds "$check_seconds" -- \
        --config /sled/sled.toml --devices "[${drives#, }]"
    status=$?
    if [ $status = 86 ]; then
        echo "base: recovery: no slot can be started"
        stage sled_board.console --device "$console" --store /sled/firmware.toml
        echo "base: the recovery prompt ended with status $?"
    else
        echo "base: the stage ended with status $status"
    fi
    sleep 1
done
