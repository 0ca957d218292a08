# Waiting for events of pools, written for virsh. A test runs this with virsh, and with astore in its place.
export LC_ALL=C
set -m  # or Ctrl-C would not reach what runs beside the script
task() { echo "== $*"; }

# changed WORD CHANGE BACK: change a pool until the waiting command has told of it
changed() {
  for _ in $(seq 60); do
    virsh $2 >changed
    for _ in $(seq 20); do
      grep -q ": $1$" events && return
      sleep 0.2
    done
    virsh $3 >changed
  done
  echo "$1 was not told"
}

task 1: wait for what happens to pools
virsh pool-event --list
mkdir folder
virsh pool-define-as watched dir --target "$PWD/folder" >changed
virsh pool-event --event lifecycle --loop >events 2>changed &
changed Started "pool-start watched" "pool-destroy watched"
changed Stopped "pool-destroy watched" "pool-start watched"
changed Undefined "pool-undefine watched" "pool-define-as watched dir --target $PWD/folder"
changed Defined "pool-define-as watched dir --target $PWD/folder" "pool-undefine watched"
kill -INT $!
wait $!
sort -u events | grep event.*for
tail -3 events | grep -v for | sed 's/[0-9][0-9]*/N/'

task 2: wait for one refresh
virsh pool-start watched >changed
virsh pool-event watched refresh >events &
for _ in $(seq 60); do
  kill -0 $! 2>changed || break
  virsh pool-refresh watched >changed
  sleep 1.2
done
wait $!
cat events
virsh pool-destroy watched
virsh pool-undefine watched
