// Runs steps one after the other, each with a deadline, and writes a line of JSON for
// each: its name, and what was wrong. javascript_test.go reads them.
'use strict';

exports.run = async (steps) => {
  for (const [name, step] of Object.entries(steps)) {
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('it took 15 s')), 15000); });
    let error = '';
    try {
      await Promise.race([step(), late]);
    } catch (e) {
      error = (e && e.stack) || String(e);
    }
    clearTimeout(timer);
    process.stdout.write(JSON.stringify({ name, error }) + '\n');
  }
  process.exit(0);
};

// until polls: by users' standards what a client waits for comes soon.
exports.until = async (what, holds) => {
  for (const end = Date.now() + 5000; !(await holds());) {
    if (Date.now() > end) throw new Error('not in 5 s: ' + what);
    await new Promise((done) => setTimeout(done, 10));
  }
};
