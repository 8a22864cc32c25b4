package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"infraflows/lab/rke2/internal/bundle"
	"infraflows/lab/rke2/internal/etcd"
	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/logging"
)

const (
	memberAnnotation     = "etcd.rke2.cattle.io/node-name"
	encryptionAnnotation = "rke2.io/encryption-config-hash"
)

// applyRoles gives kwok what it needs beyond a kubelet's rights: it lists nodes to see whether the API serves, and it
// lists and watches its node lease where a kubelet only reads it by name. It changes nothing of other nodes.
func (s *Server) applyRoles(ctx context.Context) error {
	const group = "rbac.authorization.k8s.io"
	metadata := kube.Object{"name": "infraflows-lab-kwok"}
	role := kube.Object{
		"apiVersion": group + "/v1", "kind": "ClusterRole", "metadata": metadata, "rules": []kube.Object{
			{"apiGroups": []string{""}, "resources": []string{"nodes"}, "verbs": []string{"list", "watch"}},
			{"apiGroups": []string{"coordination.k8s.io"}, "resources": []string{"leases"}, "verbs": []string{"list", "watch"}},
		},
	}
	binding := kube.Object{
		"apiVersion": group + "/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
		"roleRef":  kube.Object{"apiGroup": group, "kind": "ClusterRole", "name": "infraflows-lab-kwok"},
		"subjects": []kube.Object{{"apiGroup": group, "kind": "Group", "name": "system:nodes"}},
	}
	for kind, object := range map[string]kube.Object{"clusterroles": role, "clusterrolebindings": binding} {
		path := "/apis/" + group + "/v1/" + kind + "/infraflows-lab-kwok?fieldManager=rke2&force=true"
		if _, err := s.kube.Patch(ctx, path, kube.Apply, object); err != nil {
			return err
		}
	}
	return nil
}

// markNode writes what a node must not write on itself: its roles, its etcd member, its encryption key's digest.
func (s *Server) markNode(ctx context.Context) error {
	name, err := etcd.MemberName(s.layout, s.config.NodeName)
	if err != nil {
		return err
	}
	annotations := kube.Object{
		memberAnnotation: name, "etcd.rke2.cattle.io/node-address": s.config.NodeIP,
	}
	if s.config.SecretsEncryption {
		settings, err := bundle.ReadEncryptionConfig(s.layout)
		if err != nil {
			return err
		}
		annotations[encryptionAnnotation] = "start-" + settings.Digest()
	}
	labels := kube.Object{"node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/etcd": "true"}
	change := kube.Object{"metadata": kube.Object{"labels": labels, "annotations": annotations}}
	_, err = s.kube.Patch(ctx, "/api/v1/nodes/"+s.config.NodeName, kube.Merge, change)
	return err
}

// superviseCluster starts the loops that RKE2's controllers run on every server; each of their acts is idempotent.
func (s *Server) superviseCluster(ctx context.Context) {
	go s.followBundle(ctx)
	go s.followNodes(ctx)
	go s.takeSnapshots(ctx)
}

// followNodes cleans up after deleted nodes: the node password, so that the name can be used again, and the etcd
// member, so that a lost server does not weigh on the quorum.
func (s *Server) followNodes(ctx context.Context) {
	for ctx.Err() == nil {
		list, err := s.kube.Get(ctx, "/api/v1/nodes?limit=1")
		if err == nil {
			version := kube.Text(list, "metadata", "resourceVersion")
			err = s.kube.Watch(ctx, "/api/v1/nodes?watch=true&resourceVersion="+version, func(event kube.Event) {
				if event.Type == "DELETED" {
					s.forgetNode(ctx, event.Object)
				}
			})
		}
		logging.Debug("The watch on nodes ended: %v", err)
		every(ctx, time.Second)
	}
}

func (s *Server) forgetNode(ctx context.Context, node kube.Object) {
	name := kube.Text(node, "metadata", "name")
	logging.Info("Node %s was deleted", name)
	if err := s.kube.Delete(ctx, passwordPath(name)); err != nil {
		logging.Warning("Unable to delete the node password of %s: %v", name, err)
	}
	member := kube.Text(node, "metadata", "annotations", memberAnnotation)
	if member == "" {
		return
	}
	members, err := s.etcd.Members(ctx)
	if err != nil {
		logging.Warning("Unable to list etcd members after %s was deleted: %v", name, err)
		return
	}
	for _, candidate := range members {
		if candidate.Name == member && len(members) > 1 {
			logging.Info("Removing name=%s id=%s from etcd", member, candidate.ID)
			if err = s.etcd.Remove(ctx, candidate.ID); err != nil {
				logging.Warning("Unable to remove etcd member %s: %v", member, err)
			}
		}
	}
}

// apiServers lists the addresses behind the `kubernetes` service.
func (s *Server) apiServers(ctx context.Context) ([]string, error) {
	slices, err := s.kube.Get(ctx, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector="+
		"kubernetes.io%2Fservice-name%3Dkubernetes")
	if err != nil {
		return nil, err
	}
	var result []string
	for _, slice := range kube.Items(slices) {
		endpoints, _ := slice["endpoints"].([]any)
		for _, endpoint := range endpoints {
			fields, _ := endpoint.(map[string]any)
			addresses, _ := fields["addresses"].([]any)
			for _, address := range addresses {
				if text, isText := address.(string); isText {
					result = append(result, hostPort(text, "6443"))
				}
			}
		}
	}
	return result, nil
}

func hostPort(host, port string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]:" + port
	}
	return host + ":" + port
}

func passwordPath(node string) string {
	return fmt.Sprintf("/api/v1/namespaces/kube-system/secrets/%s.node-password.rke2", node)
}

// errPassword is what RKE2 tells a host whose name is another's.
func errPassword() (int, string) {
	return http.StatusForbidden, "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' " +
		"may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag"
}
