package server

import (
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"infraflows/lab/rke2/internal/kube"
	"infraflows/lab/rke2/internal/pki"
)

const passwordIterations = 50_000

func (s *Server) handleClientKubelet(request *http.Request) ([]byte, error) {
	return s.signNode(request, s.authorities.Client, func(name, _ string) pki.Leaf {
		return pki.Leaf{CommonName: "system:node:" + name, Groups: []string{"system:nodes"}, IsClient: true}
	})
}

func (s *Server) handleServingKubelet(request *http.Request) ([]byte, error) {
	return s.signNode(request, s.authorities.Server, func(name, address string) pki.Leaf {
		return pki.Leaf{CommonName: name, IsServer: true, Names: []string{name, "localhost", "127.0.0.1", address}}
	})
}

// signNode issues a certificate for the host that proves the node's password; what the request asks to be called is
// not believed.
func (s *Server) signNode(request *http.Request, authority *pki.Authority, leaf func(name, address string) pki.Leaf) ([]byte, error) {
	name := strings.ToLower(request.Header.Get("rke2-Node-Name"))
	password := request.Header.Get("rke2-Node-Password")
	if name == "" || password == "" {
		return nil, refuse(http.StatusBadRequest, "node name or node password not set")
	}
	address := request.Header.Get("rke2-Node-IP")
	if _, err := netip.ParseAddr(address); address != "" && err != nil {
		return nil, refuse(http.StatusBadRequest, "node IP %q is not an address", address)
	}
	body, err := io.ReadAll(io.LimitReader(request.Body, 1<<16))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return nil, refuse(http.StatusBadRequest, "the request holds no certificate request")
	}
	wanted, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || wanted.CheckSignature() != nil {
		return nil, refuse(http.StatusBadRequest, "the certificate request is not valid")
	}
	if err = s.checkNodePassword(request.Context(), name, password); err != nil {
		return nil, err
	}
	return authority.Sign(leaf(name, address), wanted.PublicKey)
}

// checkNodePassword keeps the hash of each node's first password in a secret, as RKE2 does, and compares later ones.
func (s *Server) checkNodePassword(ctx context.Context, name, password string) error {
	secret, err := s.kube.Get(ctx, passwordPath(name))
	if kube.Is(err, http.StatusNotFound) {
		hash, err := hashPassword(password, nil)
		if err != nil {
			return err
		}
		_, err = s.kube.Create(ctx, "/api/v1/namespaces/kube-system/secrets", kube.Object{
			"apiVersion": "v1", "kind": "Secret", "immutable": true,
			"metadata": kube.Object{"name": name + ".node-password.rke2", "namespace": "kube-system"},
			"data":     kube.Object{"hash": base64.StdEncoding.EncodeToString([]byte(hash))},
		})
		if !kube.Is(err, http.StatusConflict) {
			return err
		}
		// Two servers were asked at once: what the other one stored decides.
		secret, err = s.kube.Get(ctx, passwordPath(name))
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	stored, err := base64.StdEncoding.DecodeString(kube.Text(secret, "data", "hash"))
	if err != nil {
		return err
	}
	if isPassword(password, string(stored)) {
		return nil
	}
	status, message := errPassword()
	return refuse(status, "%s (unable to verify hash for node '%s': hash does not match)", message, name)
}

func hashPassword(password string, salt []byte) (string, error) {
	if salt == nil {
		salt = make([]byte, 16)
		if _, err := rand.Read(salt); err != nil {
			return "", err
		}
	}
	key, err := pbkdf2.Key(sha256.New, password, salt, passwordIterations, 32)
	if err != nil {
		return "", err
	}
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$pbkdf2-sha256$%s$%s", encode(salt), encode(key)), nil
}

func isPassword(password, stored string) bool {
	parts := strings.Split(stored, "$")
	if len(parts) != 4 || parts[1] != "pbkdf2-sha256" {
		return false
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[2])
	if err != nil {
		return false
	}
	expected, err := hashPassword(password, salt)
	return err == nil && same(expected, stored)
}
