package server

import (
	"context"
	"time"

	"infraflows/lab/rke2/internal/logging"
	"infraflows/lab/rke2/internal/snapshot"
)

// takeSnapshots saves etcd by the configured schedule and keeps the configured number.
func (s *Server) takeSnapshots(ctx context.Context) {
	if s.config.SnapshotsDisabled {
		return
	}
	schedule, err := snapshot.ParseSchedule(s.config.SnapshotCron)
	if err != nil {
		logging.Error("No scheduled snapshots: %v", err)
		return
	}
	store := snapshot.New(s.layout, s.config, s.libexec)
	for {
		next, found := schedule.Next(time.Now())
		if !found || !every(ctx, time.Until(next)) {
			return
		}
		saved, err := store.Save(ctx, s.config.SnapshotName)
		if err != nil {
			logging.Error("Unable to save the scheduled etcd snapshot: %v", err)
			continue
		}
		logging.Info("Saved etcd snapshot %s", saved.Path)
		if err = store.Prune(s.config.SnapshotName, s.config.SnapshotRetention); err != nil {
			logging.Warning("Unable to remove old etcd snapshots: %v", err)
		}
	}
}
