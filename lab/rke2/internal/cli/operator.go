package cli

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"infraflows/lab/rke2/internal/access"
	"infraflows/lab/rke2/internal/layout"
	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/pki"
	"infraflows/lab/rke2/internal/server"
	"infraflows/lab/rke2/internal/snapshot"
	"infraflows/lab/rke2/internal/token"
)

func saveSnapshot(c *command) error {
	name := c.own["name"]
	if name == "" {
		name = "on-demand"
	}
	ctx, cancel := signals()
	defer cancel()
	saved, err := snapshot.New(c.layout, c.config, c.libexec).Save(ctx, name)
	if err == nil {
		logging.Info("Snapshot %s saved.", saved.Name)
	}
	return err
}

func listSnapshots(c *command) error {
	all, err := snapshot.New(c.layout, c.config, c.libexec).List()
	if err != nil {
		return err
	}
	if c.own["output"] == "json" {
		return json.NewEncoder(os.Stdout).Encode(all)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 1, ' ', 0)
	fmt.Fprintln(table, "Name\tLocation\tSize\tCreated")
	for _, item := range all {
		fmt.Fprintf(table, "%s\tfile://%s\t%d\t%s\n", item.Name, item.Path, item.Bytes, item.Created.UTC().Format(time.RFC3339))
	}
	return table.Flush()
}

func deleteSnapshots(c *command) error {
	if len(c.rest) == 0 {
		return fmt.Errorf("no snapshots given for removal")
	}
	store := snapshot.New(c.layout, c.config, c.libexec)
	for _, name := range c.rest {
		isDeleted, err := store.Delete(name)
		if err != nil {
			return err
		}
		if isDeleted {
			logging.Info("Snapshot %s deleted.", name)
		} else {
			logging.Warning("Snapshot %s not found.", name)
		}
	}
	return nil
}

// certificates returns the leaf certificates of this host by file.
func certificates(l layout.Layout) (map[string]*x509.Certificate, error) {
	found := map[string]*x509.Certificate{}
	for _, root := range []string{l.TLS(), l.Agent()} {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".crt") {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			certificate, err := pki.ParseCertificate(content)
			if err == nil && !certificate.IsCA {
				found[path] = certificate
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// rotateCertificates sets the leaf certificates aside; the next start of the service makes new ones.
func rotateCertificates(c *command) error {
	if isServing() {
		return fmt.Errorf("rke2 is running: stop the service before its certificates are rotated")
	}
	found, err := certificates(c.layout)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("there are no certificates below %s", c.layout.Data)
	}
	backup := c.layout.Server(fmt.Sprintf("tls-%d", time.Now().Unix()))
	for path := range found {
		relative, err := filepath.Rel(c.layout.Data, path)
		if err != nil {
			return err
		}
		target := filepath.Join(backup, relative)
		if err = os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		// Without its certificate a key is not used any more, so the order survives a kill.
		if err = os.Rename(path, target); err != nil {
			return err
		}
	}
	logging.Info("Successfully backed up certificates to %s, please restart rke2 server or agent to rotate certificates", backup)
	return nil
}

func isServing() bool {
	for _, address := range []string{"127.0.0.1:9345", "127.0.0.1:6444"} {
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			connection.Close()
			return true
		}
	}
	return false
}

func checkCertificates(c *command) error {
	found, err := certificates(c.layout)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "FILENAME\tSUBJECT\tUSAGES\tEXPIRES\tRESIDUAL TIME\tSTATUS")
	for path, certificate := range found {
		status := "OK"
		if remaining := time.Until(certificate.NotAfter); remaining < 0 {
			status = "EXPIRED"
		} else if remaining < pki.RenewBefore {
			status = "WARNING"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d days\t%s\n", filepath.Base(path), certificate.Subject, usages(certificate),
			certificate.NotAfter.UTC().Format(time.RFC3339), int(time.Until(certificate.NotAfter).Hours()/24), status)
	}
	return table.Flush()
}

func usages(certificate *x509.Certificate) string {
	var names []string
	for _, usage := range certificate.ExtKeyUsage {
		switch usage {
		case x509.ExtKeyUsageServerAuth:
			names = append(names, "ServerAuth")
		case x509.ExtKeyUsageClientAuth:
			names = append(names, "ClientAuth")
		}
	}
	return strings.Join(names, ",")
}

// local reaches this host's supervisor with the token on disk.
func local(ctx context.Context, c *command) (*access.Access, error) {
	text, err := os.ReadFile(c.layout.Token())
	if err != nil {
		return nil, fmt.Errorf("this host is not a server: %w", err)
	}
	parsed, err := token.Parse(string(text), token.ServerUser)
	if err != nil {
		return nil, err
	}
	return access.Connect(ctx, "https://127.0.0.1:9345", parsed)
}

func rotateToken(c *command) error {
	fresh := c.own["new-token"]
	if fresh == "" {
		fresh = os.Getenv("RKE2_NEW_TOKEN") // argv is readable by everyone on the host
	}
	if fresh == "" {
		generated, err := token.Generate()
		if err != nil {
			return err
		}
		fresh = generated
	}
	ctx, cancel := signals()
	defer cancel()
	host, err := local(ctx, c)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]string{"newToken": fresh})
	if err != nil {
		return err
	}
	answer, err := host.Call(ctx, http.MethodPut, "/v1-rke2/token", nil, body)
	if err == nil {
		fmt.Print(string(answer))
	}
	return err
}

func generateToken(*command) error {
	secret, err := token.Generate()
	if err == nil {
		fmt.Println(secret)
	}
	return err
}

func encryptStatus(c *command) error {
	ctx, cancel := signals()
	defer cancel()
	host, err := local(ctx, c)
	if err != nil {
		return err
	}
	var status server.EncryptionStatus
	if err = host.JSON(ctx, http.MethodGet, "/v1-rke2/encrypt/status", nil, &status); err != nil {
		return err
	}
	if c.own["output"] == "json" {
		return json.NewEncoder(os.Stdout).Encode(status)
	}
	if !status.IsEnabled {
		fmt.Println("Encryption Status: Disabled")
		return nil
	}
	fmt.Printf("Encryption Status: Enabled\nCurrent Rotation Stage: %s\nServer Encryption Hashes: %s\n\n", status.Stage, status.Hashes)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "Active\tKey Type\tName\n------\t--------\t----\n *\t%s\t%s\n", status.KeyType, status.Active)
	for _, name := range status.Inactive {
		fmt.Fprintf(table, "\t%s\t%s\n", status.KeyType, name)
	}
	return table.Flush()
}

func rotateKeys(c *command) error {
	ctx, cancel := signals()
	defer cancel()
	host, err := local(ctx, c)
	if err != nil {
		return err
	}
	answer, err := host.Call(ctx, http.MethodPost, "/v1-rke2/encrypt/rotate-keys", nil, nil)
	if err == nil {
		fmt.Print(string(answer))
	}
	return err
}
