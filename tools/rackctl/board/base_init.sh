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
echo "base: up"

recover() {
    echo "base: recovery: $1"
    setsid cttyhack sh
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

mount -t ext4 -o noatime "$(findfs LABEL=sled)" /sled || recover "the partition with the board's identity cannot be mounted"

. /sled/board.sh
hostname "$name"
ip link set lo up
ip link set eth0 up
if [ "$address" = dhcp ]; then
    udhcpc -q -b -i eth0 -s /etc/udhcpc.sh >/dev/null
else
    ip addr add "$address" dev eth0
    [ -z "$gateway" ] || ip route add default via "$gateway"
fi
echo "base: name=$name address=$address drives=[${drives#, }]"

[ -e /dev/watchdog ] && watchdog="--watchdog /dev/watchdog"
while :; do
    # shellcheck disable=SC2086 # one word or two, or none
    PYTHONPATH=/usr/lib/stage python3.11 -m sled_board.stage --store /sled/firmware.toml --run /run/sled $watchdog \
        --start-seconds "$start_seconds" --check-seconds "$check_seconds" -- \
        --config /sled/sled.toml --devices "[${drives#, }]"
    status=$?
    [ $status = 86 ] && recover "no slot can be started"
    echo "base: the stage ended with status $status"
    sleep 1
done
