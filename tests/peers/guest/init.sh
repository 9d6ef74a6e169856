#!/bin/busybox sh
# The guest's first and only process of its own: brings the machine up, then runs what it is told over a virtio port.
#
# It reads  "run ID SCRIPT_BYTES INPUT_BYTES\n", the script and its input; or  "kill ID\n".
# It writes "done ID STATUS OUTPUT_BYTES ERRORS_BYTES\n", the output and the errors. ID 0 says that it is ready.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir -p /tmp /jobs /mnt /dev/shm /etc/nvme
mount -t tmpfs shm /dev/shm
modprobe configfs && mount -t configfs config /sys/kernel/config
modprobe virtio_net
hostname guest
echo nqn.2014-08.org.nvmexpress:uuid:67756573-7400-4000-8000-000000000000 >/etc/nvme/hostnqn
echo 67756573-7400-4000-8000-000000000000 >/etc/nvme/hostid
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = palisade ] && port=/dev/$(basename "$(dirname "$name")")
done
exec 3<>"$port" || exit 1

# One job: its output goes to files, so that a process it leaves behind holds nothing up.
job() {
    cd /root
    setsid sh "/jobs/$1.sh" <"/jobs/$1.in" >"/jobs/$1.out" 2>"/jobs/$1.err" 3>&- &
    echo $! >"/jobs/$1.pid"
    wait $!
    status=$?
    {
        flock 9
        echo "done $1 $status $(stat -c %s "/jobs/$1.out") $(stat -c %s "/jobs/$1.err")"
        cat "/jobs/$1.out" "/jobs/$1.err"
    } 9>/jobs/lock >&3
    rm -f "/jobs/$1".*
}

# As many bytes of the port as are named: dd, since a shell's read stops at a NUL and head reads ahead.
take() {
    if [ "$2" -gt 0 ]; then
        dd of="$1" bs="$2" count=1 iflag=fullblock status=none <&3
    else
        : >"$1"
    fi
}

echo "done 0 0 0 0" >&3
while read -r verb id script_bytes input_bytes <&3; do
    case $verb in
    run)
        take "/jobs/$id.sh" "$script_bytes"
        take "/jobs/$id.in" "$input_bytes"
        job "$id" &
        ;;
    kill) kill -KILL "-$(cat "/jobs/$id.pid")" ;;
    esac
done
