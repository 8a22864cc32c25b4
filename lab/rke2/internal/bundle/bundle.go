// Package bundle carries what every server of a cluster must share: authorities, service-account key, encryption keys.
//
// It promises that the bundle leaves a host only encrypted with the cluster's token (PBKDF2, AES-256-GCM): whoever
// reads etcd or the wire without the token learns nothing, and a wrong token is told from damaged data.
package bundle

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/pki"
)

const (
	iterations = 100_000
	saltBytes  = 16
	magic      = "rke2-lab-1:"
)

// ErrWrongToken says that the bundle was sealed with another token.
var ErrWrongToken = errors.New("bootstrap data already found and encrypted with different token")

// Bundle maps a path below server/ to its content.
type Bundle map[string][]byte

// Encryption is the path of the encryption configuration within a bundle.
const Encryption = "cred/encryption-config.json"

// AgentSecret is the path of the agents' secret within a bundle; every server must accept the same agents.
const AgentSecret = "cred/agent-secret"

// Collect reads the bundle of this host.
func Collect(l layout.Layout) (Bundle, error) {
	result := Bundle{}
	for _, name := range pki.ClusterFiles {
		content, err := os.ReadFile(l.TLS(name))
		if err != nil {
			return nil, err
		}
		result["tls/"+name] = content
	}
	for _, name := range []string{Encryption, AgentSecret} {
		content, err := os.ReadFile(l.Server(name))
		if err == nil {
			result[name] = content
		} else if !os.IsNotExist(err) {
			return nil, err
		}
	}
	return result, nil
}

// Write places the bundle on this host; a certificate comes after its key.
func (b Bundle) Write(l layout.Layout) error {
	for _, wantCertificate := range []bool{false, true} {
		for name, content := range b {
			if strings.HasSuffix(name, ".crt") != wantCertificate {
				continue
			}
			if !filepath.IsLocal(name) {
				return fmt.Errorf("bootstrap data names a path outside of the server's directory: %q", name)
			}
			mode := os.FileMode(0o600)
			if wantCertificate {
				mode = 0o644
			}
			if err := layout.WriteAtomic(l.Server(name), content, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

// Seal encrypts the bundle with the token's secret.
func (b Bundle) Seal(secret string) ([]byte, error) {
	plain, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	salt := make([]byte, saltBytes)
	if _, err = rand.Read(salt); err != nil {
		return nil, err
	}
	gcm, err := newCipher(secret, salt)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	if _, err = rand.Read(nonce); err != nil {
		return nil, err
	}
	sealed := gcm.Seal(append(salt, nonce...), nonce, plain, []byte(magic))
	return []byte(magic + base64.StdEncoding.EncodeToString(sealed)), nil
}

// Open decrypts what Seal made.
func Open(sealed []byte, secret string) (Bundle, error) {
	text, found := strings.CutPrefix(string(sealed), magic)
	raw, err := base64.StdEncoding.DecodeString(text)
	if !found || err != nil || len(raw) < saltBytes+12 {
		return nil, fmt.Errorf("bootstrap data is not in the form that this version writes")
	}
	gcm, err := newCipher(secret, raw[:saltBytes])
	if err != nil {
		return nil, err
	}
	nonce := raw[saltBytes : saltBytes+gcm.NonceSize()]
	plain, err := gcm.Open(nil, nonce, raw[saltBytes+gcm.NonceSize():], []byte(magic))
	if err != nil {
		return nil, ErrWrongToken
	}
	result := Bundle{}
	return result, json.Unmarshal(plain, &result)
}

func newCipher(secret string, salt []byte) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, secret, salt, iterations, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Key is where a bundle lies in etcd; it depends on the token so that a wrong token finds nothing of its own.
func Key(secret string) string {
	digest := sha256.Sum256([]byte(secret))
	return Prefix + hex.EncodeToString(digest[:])[:12]
}

// Prefix holds all bundles in etcd.
const Prefix = "/bootstrap/"
