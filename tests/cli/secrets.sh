# What is done with secrets, written for virsh. A test runs this with virsh, and with astore in its place.
export LC_ALL=C
task() { echo "== $*"; }

task 1: define secrets
cat >secret.xml <<END
<secret ephemeral='no' private='no'>
  <description>the key of the cluster</description>
  <uuid>8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11</uuid>
  <usage type='ceph'><name>client.images</name></usage>
</secret>
END
cat >other.xml <<END
<secret ephemeral='no' private='no'>
  <uuid>8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c12</uuid>
  <usage type='iscsi'><target>libvirtiscsi</target></usage>
</secret>
END
cat >unused.xml <<END
<secret ephemeral='no' private='no'><uuid>8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c13</uuid></secret>
END
virsh secret-define secret.xml
virsh secret-define --file other.xml
virsh secret-define unused.xml

task 2: list them
virsh secret-list
virsh -q secret-list
virsh secret-dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11
virsh secret-dumpxml 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c12 --xpath '//usage/target/text()'

task 3: set the value of one
echo c2VzYW1l >key
virsh secret-set-value 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11 --file key
virsh secret-set-value --secret 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c12 --file key --plain

task 4: remove them
for last in 1 2 3; do virsh secret-undefine 8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c1$last; done
virsh secret-list
