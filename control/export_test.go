package control

import "time"

// SetPatience shortens what a test would have to wait for. Before the first stream.
func (c *Control) SetPatience(ack, apply time.Duration) {
	c.patience.ack, c.patience.apply = ack, apply
}

// Held counts what is kept for proxies.
func (c *Control) Held() (entries, services, proxies int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries = len(c.catalogue.entries) + len(c.catalogue.byLabel) + len(c.catalogue.others) + len(c.catalogue.followers)
	return entries, len(c.catalogue.byService), len(c.proxies)
}
