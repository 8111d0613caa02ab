// What applications ask Node.js' own resolver, which is c-ares. The argument is
// host:port of DNS.
'use strict';

const assert = require('assert');
const { Resolver } = require('dns').promises;
const { run } = require('./steps');

const resolver = new Resolver({ timeout: 2000, tries: 1 });
resolver.setServers([process.argv[2]]);

run({
  async 'addresses'() {
    assert.deepStrictEqual((await resolver.resolve4('web.service.consul')).sort(), ['10.0.0.1', '10.0.0.3']);
    assert.deepStrictEqual(await resolver.resolve6('six.service.consul'), ['2001:db8::7']);
    const [{ ttl }] = await resolver.resolve4('web.service.consul', { ttl: true });
    assert.strictEqual(ttl, 0);
  },
  async 'services'() {
    const list = await resolver.resolveSrv('_web._tcp.service.consul');
    assert.deepStrictEqual(list.map((s) => [s.port, s.name]).sort(), [[8081, '0a000001.addr.dc1.consul'], [8083, '0a000003.addr.dc1.consul']]);
    assert.deepStrictEqual(await resolver.resolve4(list[0].name), [list[0].port === 8081 ? '10.0.0.1' : '10.0.0.3']);
    assert.strictEqual((await resolver.resolveSrv('web.default.svc.cluster.local')).length, 2);
  },
  async 'more than a datagram holds'() {
    assert.strictEqual((await resolver.resolveSrv('crowd.service.consul')).length, 300);
    assert.strictEqual(new Set(await resolver.resolve4('crowd.service.consul')).size, 300);
  },
  async 'names of addresses'() {
    assert.deepStrictEqual(await resolver.reverse('10.0.0.1'), ['web.service.dc1.consul']);
  },
  async 'other records'() {
    assert.strictEqual((await resolver.resolveSoa('consul')).nsname, 'ns.consul');
    assert.deepStrictEqual(await resolver.resolveTxt('dns-version.cluster.local'), [['1.1.0']]);
    assert.ok((await resolver.resolveNs('consul')).length > 0);
    await resolver.resolveAny('web.service.consul').catch((e) => assert.strictEqual(e.code, 'ENODATA'));
  },
  async 'what is not there'() {
    await assert.rejects(resolver.resolve4('absent.service.consul'), { code: 'ENOTFOUND' });
    await assert.rejects(resolver.resolve6('web.service.consul'), { code: 'ENODATA' });
    await assert.rejects(resolver.resolve4('example.com'), { code: 'EREFUSED' });
  },
});
