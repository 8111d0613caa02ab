// Command shop is one service of the example shop; its argument says which.
//
//	PORT=9001 VERSION=v1 shop order-service
//
// Package shop tells what the services answer and what they read from the
// environment.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/weftmesh/weft/examples/shop/shop"
)

func main() {
	os.Exit(run())
}

func run() int {
	if len(os.Args) != 2 || !slices.Contains(shop.Names(), os.Args[1]) {
		fmt.Fprintln(os.Stderr, "usage: PORT=9001 shop SERVICE; the services are", shop.Names())
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := shop.Run(ctx, os.Args[1], shop.ReadEnv(os.Getenv)); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		return 1
	}
	return 0
}
