package bundle

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"infraflows/lab/rke2/internal/layout"
)

// EncryptionKey is one key of an encryption configuration.
type EncryptionKey struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

type keyRing struct {
	Keys []EncryptionKey `json:"keys"`
}

type provider struct {
	AESCBC    *keyRing  `json:"aescbc,omitempty"`
	Secretbox *keyRing  `json:"secretbox,omitempty"`
	Identity  *struct{} `json:"identity,omitempty"`
}

type resource struct {
	Resources []string   `json:"resources"`
	Providers []provider `json:"providers"`
}

// EncryptionConfig is the API server's EncryptionConfiguration, as far as RKE2 uses it.
type EncryptionConfig struct {
	Kind       string     `json:"kind"`
	APIVersion string     `json:"apiVersion"`
	Resources  []resource `json:"resources"`
}

// NewEncryptionConfig makes a configuration with one new key of the provider.
func NewEncryptionConfig(providerName string) (*EncryptionConfig, error) {
	config := &EncryptionConfig{Kind: "EncryptionConfiguration", APIVersion: "apiserver.config.k8s.io/v1"}
	config.Resources = []resource{{Resources: []string{"secrets"}, Providers: []provider{{}, {Identity: &struct{}{}}}}}
	switch providerName {
	case "aescbc":
		config.Resources[0].Providers[0].AESCBC = &keyRing{}
	case "secretbox":
		config.Resources[0].Providers[0].Secretbox = &keyRing{}
	default:
		return nil, fmt.Errorf("there is no encryption provider %q", providerName)
	}
	return config, config.AddKey(providerName + "key")
}

// ReadEncryptionConfig loads the host's configuration.
func ReadEncryptionConfig(l layout.Layout) (*EncryptionConfig, error) {
	content, err := os.ReadFile(l.EncryptionConfig())
	if err != nil {
		return nil, err
	}
	config := &EncryptionConfig{}
	if err = json.Unmarshal(content, config); err != nil {
		return nil, fmt.Errorf("%s: %w", l.EncryptionConfig(), err)
	}
	if config.ring() == nil {
		return nil, fmt.Errorf("%s: it has neither aescbc nor secretbox keys", l.EncryptionConfig())
	}
	return config, nil
}

// Write places the configuration on the host.
func (c *EncryptionConfig) Write(l layout.Layout) error {
	content, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return layout.WriteAtomic(l.EncryptionConfig(), content, 0o600)
}

func (c *EncryptionConfig) ring() *keyRing {
	for _, resource := range c.Resources {
		for _, provider := range resource.Providers {
			if provider.AESCBC != nil {
				return provider.AESCBC
			}
			if provider.Secretbox != nil {
				return provider.Secretbox
			}
		}
	}
	return nil
}

// Keys lists the keys; the first one encrypts, all of them decrypt.
func (c *EncryptionConfig) Keys() []EncryptionKey { return c.ring().Keys }

// KeyType is RKE2's word for the provider.
func (c *EncryptionConfig) KeyType() string {
	if c.Resources[0].Providers[0].Secretbox != nil {
		return "XSalsa20-POLY1305"
	}
	return "AES-CBC"
}

// AddKey appends a new key, which only decrypts until it is promoted.
func (c *EncryptionConfig) AddKey(name string) error {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return err
	}
	ring := c.ring()
	if len(ring.Keys) > 0 {
		name = fmt.Sprintf("%s-%s", name, time.Now().UTC().Format("2006-01-02T15:04:05Z"))
	}
	ring.Keys = append(ring.Keys, EncryptionKey{Name: name, Secret: base64.StdEncoding.EncodeToString(raw)})
	return nil
}

// PromoteLast makes the newest key the one that encrypts.
func (c *EncryptionConfig) PromoteLast() {
	ring := c.ring()
	last := len(ring.Keys) - 1
	ring.Keys = append([]EncryptionKey{ring.Keys[last]}, ring.Keys[:last]...)
}

// DropOld keeps only the key that encrypts.
func (c *EncryptionConfig) DropOld() { c.ring().Keys = c.ring().Keys[:1] }

// Digest tells servers apart that hold different keys, without showing them.
func (c *EncryptionConfig) Digest() string {
	content, _ := json.Marshal(c)
	digest := sha256.Sum256(content)
	return hex.EncodeToString(digest[:])
}
