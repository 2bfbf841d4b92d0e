// An S3 server on versitygw's library: objects are files of a folder. Its other backends (Azure and their like), which
// are much to compile, are left out.
//
//	versitygw ADDRESS METADATA-FOLDER FOLDER-OF-BUCKETS
//
// $ROOT_ACCESS_KEY and $ROOT_SECRET_KEY are the one account's.
package main

import (
	"context"
	"log"
	"os"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

func main() {
	if len(os.Args) != 4 {
		log.Fatalf("usage: %s ADDRESS METADATA-FOLDER FOLDER-OF-BUCKETS", os.Args[0])
	}
	address, metadata, buckets := os.Args[1], os.Args[2], os.Args[3]
	sidecar, err := meta.NewSideCar(metadata)
	if err != nil {
		log.Fatal(err)
	}
	// The settings are those that versitygw's own program has without options.
	options := posix.PosixOpts{SideCarDir: metadata, Concurrency: 5000, IOBufferSize: 1 << 20, CopyObjectThreshold: 5 << 30}
	options.SetNewDirPerm(0o755)
	options.SetNewFilePerm(0o644)
	backend, err := posix.New(buckets, sidecar, options)
	if err != nil {
		log.Fatal(err)
	}
	config := embedgw.Config{
		RootUserAccess:      os.Getenv("ROOT_ACCESS_KEY"),
		RootUserSecret:      os.Getenv("ROOT_SECRET_KEY"),
		Ports:               []string{address},
		MaxConnections:      1000,
		MaxRequests:         1000,
		AdminMaxConnections: 1000,
		AdminMaxRequests:    1000,
		MultipartMaxParts:   10000,
		IAMCacheTTL:         120,
		IAMCachePrune:       3600,
	}
	log.Fatal(embedgw.RunVersityGW(context.Background(), backend, &config))
}
