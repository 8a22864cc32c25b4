package agent

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"infraflows/lab/rke2/internal/config"
	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/version"
)

// register creates or refreshes this host's Node with the kubelet's own identity, as a kubelet does.
func register(ctx context.Context, client *kube.Client, c *config.Config, l layout.Layout) error {
	path := "/api/v1/nodes/" + c.NodeName
	labels := nodeLabels(c)
	annotations := kube.Object{
		// Says what stands in for the kubelet: nobody shall take this node for a real one.
		"infraflows.lab/kubelet": "kwok", "rke2.io/hostname": c.NodeName, "rke2.io/internal-ip": c.NodeIP,
		"rke2.io/node-args": fmt.Sprintf("[\"profile\",%q]", c.Profile),
	}
	node := kube.Object{
		"apiVersion": "v1", "kind": "Node",
		"metadata": kube.Object{"name": c.NodeName, "labels": labels, "annotations": annotations},
	}
	if taints := nodeTaints(c); len(taints) > 0 {
		node["spec"] = kube.Object{"taints": taints}
	}
	_, err := client.Create(ctx, "/api/v1/nodes", node)
	if kube.Is(err, http.StatusConflict) {
		// Taints belong to the administrator once the node exists; NodeRestriction would refuse them from here.
		change := kube.Object{"metadata": kube.Object{"labels": labels, "annotations": annotations}}
		_, err = client.Patch(ctx, path, kube.Strategic, change)
	}
	if err != nil {
		return err
	}
	_, err = client.Patch(ctx, path+"/status", kube.Strategic, kube.Object{"status": nodeStatus(c, l)})
	return err
}

// evictStrangers deletes the pods that a deleted node of the same name left behind: nothing runs them here, and their
// addresses are of a network that is not this node's.
func evictStrangers(ctx context.Context, client *kube.Client, node, podCIDR string) error {
	network, err := netip.ParsePrefix(podCIDR)
	if err != nil {
		return err
	}
	list, err := client.Get(ctx, "/api/v1/pods?fieldSelector=spec.nodeName%3D"+node)
	if err != nil {
		return err
	}
	for _, pod := range kube.Items(list) {
		spec, _ := pod["spec"].(map[string]any)
		address, err := netip.ParseAddr(kube.Text(pod, "status", "podIP"))
		if err != nil || network.Contains(address) || spec["hostNetwork"] == true {
			continue
		}
		namespace, name := kube.Text(pod, "metadata", "namespace"), kube.Text(pod, "metadata", "name")
		path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s?gracePeriodSeconds=0", namespace, name)
		if err = client.Delete(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

func nodeLabels(c *config.Config) kube.Object {
	labels := kube.Object{
		"kubernetes.io/hostname": c.NodeName, "kubernetes.io/os": "linux", "kubernetes.io/arch": runtime.GOARCH,
		"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": runtime.GOARCH,
		"node.kubernetes.io/instance-type": "rke2",
	}
	for _, label := range c.NodeLabels {
		name, value, _ := strings.Cut(label, "=")
		labels[name] = value
	}
	return labels
}

func nodeTaints(c *config.Config) []kube.Object {
	var taints []kube.Object
	for _, text := range c.NodeTaints {
		name, value, effect, err := config.ParseTaint(text)
		if err == nil { // the configuration was validated when it was loaded
			taints = append(taints, kube.Object{"key": name, "value": value, "effect": effect})
		}
	}
	return taints
}

func nodeStatus(c *config.Config, l layout.Layout) kube.Object {
	capacity := kube.Object{
		"cpu": strconv.Itoa(runtime.NumCPU()), "memory": fmt.Sprintf("%dKi", memoryKiB()), "pods": "110",
		"ephemeral-storage": fmt.Sprintf("%dKi", storageKiB(l.Data)), "hugepages-2Mi": "0",
	}
	return kube.Object{
		"addresses": []kube.Object{
			{"type": "InternalIP", "address": c.NodeIP}, {"type": "Hostname", "address": c.NodeName},
		},
		"capacity": capacity, "allocatable": capacity, "nodeInfo": kube.Object{
			"architecture": runtime.GOARCH, "operatingSystem": "linux", "osImage": osImage(),
			"kernelVersion": read("/proc/sys/kernel/osrelease"), "bootID": read("/proc/sys/kernel/random/boot_id"),
			"machineID": read("/etc/machine-id"), "systemUUID": read("/etc/machine-id"),
			"containerRuntimeVersion": "kwok://0.8.0", "kubeletVersion": version.Version, "kubeProxyVersion": "",
		},
	}
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(content))
}

func osImage() string {
	for _, line := range strings.Split(read("/etc/os-release"), "\n") {
		if value, found := strings.CutPrefix(line, "PRETTY_NAME="); found {
			return strings.Trim(value, `"`)
		}
	}
	return "Linux"
}

// memoryKiB is the host's memory, or its control group's limit where that is lower (a guest in a container).
func memoryKiB() int64 {
	var total int64
	for _, line := range strings.Split(read("/proc/meminfo"), "\n") {
		if value, found := strings.CutPrefix(line, "MemTotal:"); found {
			total, _ = strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if limit, err := strconv.ParseInt(read(path), 10, 64); err == nil && limit > 0 && limit/1024 < total {
			total = limit / 1024
		}
	}
	return total
}

func storageKiB(path string) int64 {
	var status syscall.Statfs_t
	if syscall.Statfs(path, &status) != nil {
		return 0
	}
	return int64(status.Blocks) * status.Bsize / 1024
}
