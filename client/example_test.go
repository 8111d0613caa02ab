package client_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/weftmesh/weft"
	"github.com/weftmesh/weft/client"
)

// shop runs a weft server, to which $WEFT_ADDR leads, and an order-service.
func shop() (weftServer *server, stop func()) {
	orders := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s has %s", r.Host, r.URL.Path)
	}))
	weftServer = newServer()
	weftServer.set("order-service", orders.Listener.Addr().String())
	os.Setenv(client.AddrEnv, weftServer.addr())
	return weftServer, func() {
		os.Unsetenv(client.AddrEnv)
		orders.CloseClientConnections()
		orders.Close()
		weftServer.stop()
	}
}

func ExampleNew() {
	_, stop := shop()
	defer stop()

	ctx := context.Background()
	c, err := client.New(ctx) // finds the server by $WEFT_ADDR
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	orders, err := c.Resolve(ctx, "order-service")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(orders.Endpoints), "instance of", orders.Service)

	_, err = c.Resolve(ctx, "odrer-service")
	fmt.Println(weft.KindOf(err) == weft.NotFound)
	// Output:
	// 1 instance of order-service
	// true
}

func ExampleClient_HTTPClient() {
	_, stop := shop()
	defer stop()

	c, err := client.New(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	web := c.HTTPClient()
	resp, err := web.Get("http://order-service/api/orders/1")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", body)
	// Output: order-service has /api/orders/1
}

func ExampleClient_Watch() {
	weftServer, stop := shop()
	defer stop()

	ctx := context.Background()
	c, err := client.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	for orders, err := range c.Watch(ctx, "order-service") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(orders.Endpoints), "of", orders.Instances, "instances are healthy")
		if len(orders.Endpoints) == 2 {
			break
		}
		weftServer.set("order-service", "10.0.0.1:3000", "10.0.0.2:3000") // one more comes
	}
	// Output:
	// 1 of 1 instances are healthy
	// 2 of 2 instances are healthy
}

func ExampleClient_Register() {
	_, stop := shop()
	defer stop()

	ctx := context.Background() // of the program; main would end with SIGTERM
	c, err := client.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	carts := &http.Server{Handler: client.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "a cart")
	}))}
	go carts.Serve(listener)

	lease, err := c.Register(ctx, client.Registration{
		Service: "cart-service",
		Port:    listener.Addr().(*net.TCPAddr).Port,
		Labels:  map[string]string{"version": "v2"},
	})
	if err != nil {
		log.Fatal(err)
	}
	state, err := c.Resolve(ctx, "cart-service")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("cart-service", state.Endpoints[0].Labels["version"], "is there")

	// At the end: leave the views first, finish what is in flight, then stop.
	patience, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := lease.Drain(patience); err != nil {
		log.Print(err) // the server is away, and the lease lapses
	}
	if err := carts.Shutdown(patience); err != nil {
		log.Fatal(err)
	}
	fmt.Println("drained")
	// Output:
	// cart-service v2 is there
	// drained
}

// A request that is served for a trace, and what is called for it.
func ExampleHandler() {
	weftServer, stop := shop()
	defer stop()
	inventory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Request-Id"))
	}))
	defer inventory.Close()
	weftServer.set("inventory-service", inventory.Listener.Addr().String())

	c, err := client.New(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	web := c.HTTPClient()

	handler := client.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		onward, err := http.NewRequestWithContext(r.Context(), "GET", "http://inventory-service/", nil)
		if err != nil {
			log.Fatal(err)
		}
		resp, err := web.Do(onward)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	}))

	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Request-Id", "r-4711")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	fmt.Println("the inventory saw", w.Body)
	// Output: the inventory saw r-4711
}
