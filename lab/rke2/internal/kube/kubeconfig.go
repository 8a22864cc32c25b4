package kube

import (
	"encoding/base64"
	"os"

	"gopkg.in/yaml.v3"

	"infraflows/lab/rke2/internal/layout"
)

// WriteKubeconfig writes a kubeconfig with the identity inside, as RKE2's rke2.yaml has it.
func WriteKubeconfig(path, server string, files Credentials, mode os.FileMode) error {
	embedded := func(name string) (string, error) {
		content, err := os.ReadFile(name)
		return base64.StdEncoding.EncodeToString(content), err
	}
	authority, err := embedded(files.Authority)
	if err != nil {
		return err
	}
	certificate, err := embedded(files.Certificate)
	if err != nil {
		return err
	}
	key, err := embedded(files.Key)
	if err != nil {
		return err
	}
	cluster := Object{"certificate-authority-data": authority, "server": server}
	return write(path, cluster, Object{"client-certificate-data": certificate, "client-key-data": key}, mode)
}

// WriteComponentKubeconfig names the files instead: a renewed certificate is picked up without another write.
func WriteComponentKubeconfig(path, server string, files Credentials) error {
	cluster := Object{"certificate-authority": files.Authority, "server": server}
	return write(path, cluster, Object{"client-certificate": files.Certificate, "client-key": files.Key}, 0o600)
}

func write(path string, cluster, user Object, mode os.FileMode) error {
	content, err := yaml.Marshal(Object{
		"apiVersion": "v1", "kind": "Config", "current-context": "default",
		"clusters": []Object{{"name": "default", "cluster": cluster}},
		"users":    []Object{{"name": "default", "user": user}},
		"contexts": []Object{{"name": "default", "context": Object{"cluster": "default", "user": "default"}}},
	})
	if err != nil {
		return err
	}
	return layout.WriteAtomic(path, content, mode)
}
