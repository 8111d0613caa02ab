// An application that uses eureka-js-client, driven by javascript_test.go. The first
// argument is its configuration as JSON. It reads a command a line ("start", "vip
// NAME", "stop") and writes an event a line, as JSON.
'use strict';

const { Eureka } = require('eureka-js-client');

const tell = (event, data) => process.stdout.write(JSON.stringify({ event, ...data }) + '\n');
const quiet = { debug() {}, info() {}, warn: (...a) => tell('warn', { text: a.join(' ') }), error: (...a) => tell('warn', { text: a.join(' ') }) };
const client = new Eureka({ ...JSON.parse(process.argv[2]), logger: quiet });

for (const event of ['registered', 'heartbeat', 'deregistered']) {
  client.on(event, () => tell(event));
}

const commands = {
  start: () => client.start((err) => tell('started', { text: err ? String(err) : '' })),
  vip: (name) => tell('instances', {
    instances: client.getInstancesByVipAddress(name).map((i) => ({
      id: i.instanceId, host: i.hostName, port: i.port.$, enabled: i.port['@enabled'], status: i.status, zone: i.metadata.zone || '',
    })),
  }),
  stop: () => client.stop((err) => {
    tell('stopped', { text: err ? String(err) : '' });
    process.stdin.pause();
  }),
};

require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const [name, argument] = line.split(' ');
  commands[name](argument);
});
process.stdin.on('end', () => process.exit(0)); // the test is gone
