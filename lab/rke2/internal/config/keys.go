package config

// Kind says what a key's value may be.
type Kind int

const (
	Text Kind = iota
	List
	Flag
	Number
)

// key is one option of RKE2's reference. An accepted key is valid in RKE2 but has no effect in the lab.
type key struct {
	kind     Kind
	accepted bool
}

var keys = map[string]key{
	"server": {kind: Text}, "token": {kind: Text}, "token-file": {kind: Text}, "agent-token": {kind: Text},
	"agent-token-file": {kind: Text}, "tls-san": {kind: List}, "node-name": {kind: Text}, "node-ip": {kind: Text},
	"node-label": {kind: List}, "node-taint": {kind: List}, "cluster-cidr": {kind: Text},
	"service-cidr": {kind: Text}, "cluster-domain": {kind: Text}, "cluster-dns": {kind: Text},
	"disable": {kind: List}, "write-kubeconfig": {kind: Text}, "write-kubeconfig-mode": {kind: Text},
	"profile": {kind: Text}, "secrets-encryption": {kind: Flag}, "secrets-encryption-provider": {kind: Text},
	"audit-policy-file": {kind: Text}, "pod-security-admission-config-file": {kind: Text},
	"kube-apiserver-arg": {kind: List}, "kube-controller-manager-arg": {kind: List},
	"kube-scheduler-arg": {kind: List}, "etcd-arg": {kind: List}, "etcd-disable-snapshots": {kind: Flag},
	"etcd-snapshot-name": {kind: Text}, "etcd-snapshot-schedule-cron": {kind: Text},
	"etcd-snapshot-retention": {kind: Number}, "etcd-snapshot-dir": {kind: Text},
	"etcd-snapshot-compress": {kind: Flag}, "protect-kernel-defaults": {kind: Flag},
	"data-dir": {kind: Text}, "debug": {kind: Flag}, "advertise-address": {kind: Text},
	"bind-address": {kind: Text}, "service-node-port-range": {kind: Text},

	"cni": {kind: List, accepted: true}, "selinux": {kind: Flag, accepted: true},
	"kubelet-arg": {kind: List, accepted: true}, "kube-proxy-arg": {kind: List, accepted: true},
	"kube-cloud-controller-manager-arg": {kind: List, accepted: true},
	"disable-cloud-controller":          {kind: Flag, accepted: true}, "disable-kube-proxy": {kind: Flag, accepted: true},
	"cloud-provider-name": {kind: Text, accepted: true}, "cloud-provider-config": {kind: Text, accepted: true},
	"ingress-controller": {kind: List, accepted: true}, "enable-servicelb": {kind: Flag, accepted: true},
	"node-external-ip": {kind: Text, accepted: true}, "resolv-conf": {kind: Text, accepted: true},
	"system-default-registry": {kind: Text, accepted: true}, "private-registry": {kind: Text, accepted: true},
	"embedded-registry": {kind: Flag, accepted: true}, "snapshotter": {kind: Text, accepted: true},
	"container-runtime-endpoint": {kind: Text, accepted: true}, "etcd-expose-metrics": {kind: Flag, accepted: true},
	"supervisor-metrics": {kind: Flag, accepted: true}, "kubelet-path": {kind: Text, accepted: true},
	"control-plane-resource-requests": {kind: List, accepted: true},
	"control-plane-resource-limits":   {kind: List, accepted: true},
	"pod-security-admission-config":   {kind: Text, accepted: true},
}

// charts are the packaged components that `disable` may name; the lab deploys none of them.
var charts = map[string]bool{
	"rke2-coredns": true, "rke2-ingress-nginx": true, "rke2-traefik": true, "rke2-metrics-server": true,
	"rke2-snapshot-controller": true, "rke2-snapshot-controller-crd": true, "rke2-snapshot-validation-webhook": true,
	"rke2-canal": true, "rke2-cilium": true, "rke2-calico": true, "rke2-multus": true, "rke2-runtimeclasses": true,
}

// IsFlag reports whether an option is a switch, which takes no separate value on the command line.
func IsFlag(name string) bool { return keys[name].kind == Flag }
