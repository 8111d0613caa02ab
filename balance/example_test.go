package balance_test

import (
	"fmt"
	"time"

	"github.com/weftmesh/weft/balance"
)

func ExamplePicker() {
	var a, b, c balance.Target
	names := []string{"a", "b", "c"}
	p, err := balance.NewPicker(balance.Config{Algorithm: balance.RoundRobin}, []balance.Member{
		{Target: &a, Weight: 2},
		{Target: &b, Weight: 1},
		{Target: &c, Weight: 1},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 8 {
		fmt.Print(names[p.Pick(&balance.Query{})], " ")
	}
	// Output: a b c a a b c a
}

// A session stays where it is, and has one stand-in while that is away.
func ExampleHashString() {
	names := []string{"a", "b", "c"}
	var members []balance.Member
	for _, name := range names {
		members = append(members, balance.Member{Target: new(balance.Target), Key: name})
	}
	p, err := balance.NewPicker(balance.Config{Algorithm: balance.Maglev}, members)
	if err != nil {
		fmt.Println(err)
		return
	}
	q := balance.Query{Hash: balance.HashString("session=8f14e45f"), Hashed: true}
	home := p.Pick(&q)
	p.Refresh(time.Now().UnixNano(), func(i int) bool { return i != home })
	standIn := p.Pick(&q)
	p.Refresh(time.Now().UnixNano(), nil)
	fmt.Println(names[home], "with", names[standIn], "as stand-in, and back to", names[p.Pick(&q)])
	// Output: a with b as stand-in, and back to a
}

// Half of the own zone is out of service: what it cannot carry goes to the others.
func ExamplePicker_Loads() {
	var members []balance.Member
	for i := range 20 {
		members = append(members, balance.Member{Target: new(balance.Target), Priority: uint8(i / 10)})
	}
	p, err := balance.NewPicker(balance.Config{}, members)
	if err != nil {
		fmt.Println(err)
		return
	}
	p.Refresh(time.Now().UnixNano(), func(i int) bool { return i >= 5 })
	for _, load := range p.Loads() {
		fmt.Printf("priority %d: %d of %d in service, %.0f %% of the traffic\n", load.Priority, load.Healthy, load.Members, load.Percent)
	}
	// Output:
	// priority 0: 5 of 10 in service, 70 % of the traffic
	// priority 1: 10 of 10 in service, 30 % of the traffic
}
