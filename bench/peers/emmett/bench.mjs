// One measurement with Emmett: the task is a line of JSON on stdin, what it led to are lines of JSON on stdout.

import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { CommandHandler } from '@event-driven-io/emmett';
import { getPostgreSQLEventStore, postgreSQLRawSQLProjection } from '@event-driven-io/emmett-postgresql';
import { SQL } from '@event-driven-io/dumbo';
import pg from 'pg';

const PER_STREAM = 10;
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
// Standard output is for results alone.
console.log = console.error;

const stdin = createInterface({ input: process.stdin });
const [line] = await once(stdin, 'line');
const task = JSON.parse(line);
const store = getPostgreSQLEventStore(task.url, {
  connectionOptions: { pool: new pg.Pool({ connectionString: task.url, max: 40 }) },
  schema: { autoMigration: task.work === 'schema' ? 'CreateOrUpdate' : 'None' },
});

const counted = () => ({ type: 'Counted', data: { note: 'x'.repeat(239) } });
const counter = { initialState: () => ({ counted: 0 }), evolve: (state) => ({ counted: state.counted + 1 }) };
const handle = CommandHandler(counter);

const append = (stream, version, events) =>
  store.appendToStream(stream, Array.from({ length: events }, counted), { expectedStreamVersion: BigInt(version) });

// How many events each stream has.
const projection = postgreSQLRawSQLProjection({
  name: 'counted',
  canHandle: ['Counted'],
  evolve: (event) => SQL`insert into read_model as m (stream, counted) values (${event.metadata.streamName}, 1)
    on conflict (stream) do update set counted = m.counted + 1`,
});

// As many calls as the callers get through in the time; ten to a stream.
const measure = async (call) => {
  const start = performance.now();
  const until = start + task.seconds * 1000;
  const latencies = [];
  const caller = async () => {
    while (performance.now() < until) {
      const stream = `counter-${randomUUID()}`;
      for (let nth = 0; nth < PER_STREAM; nth++) {
        const begun = performance.now();
        await call(stream, nth);
        latencies.push(Math.round((performance.now() - begun) * 1000));
      }
    }
  };
  await Promise.all(Array.from({ length: task.callers }, caller));
  say({ latencies, elapsed_us: Math.round((performance.now() - start) * 1000) });
};

const load = async () => {
  const start = performance.now();
  const latencies = [];
  for (const id of task.ids) {
    const begun = performance.now();
    const { state } = await store.aggregateStream(`counter-${id}`, counter);
    latencies.push(Math.round((performance.now() - begun) * 1000));
    if (state.counted !== task.length) throw new Error(`${id} has ${state.counted} events`);
    if (performance.now() - start >= task.seconds * 1000) break;
  }
  say({ latencies, elapsed_us: Math.round((performance.now() - start) * 1000) });
};

// Follows the log until stdin ends.
const follow = async (pulling) => {
  const consumer = store.consumer({ pulling });
  consumer.projector({ projection });
  say({ ready: true });
  consumer.start().catch((error) => {
    console.error(error);
    process.exit(1);
  });
};

const visible = async () => {
  // Its defaults: it backs off after a batch that is not full, so larger ones would show events later.
  await follow({});
  // Whatever it does to get going is no part of how soon it shows an event.
  await sleep(1000);
  const start = performance.now();
  // Ten callers in turn, 200 appends a second.
  const caller = async (_, nth) => {
    let stream;
    for (let appended = 0; appended < task.seconds * 20; appended++) {
      const early = start + (appended * 10 + nth) * 5 - performance.now();
      if (early > 0) await sleep(early);
      const version = appended % PER_STREAM;
      if (version === 0) stream = `counter-${randomUUID()}`;
      await append(stream, version, 1);
      say({ stream, counted: version + 1, at_us: Math.round((performance.timeOrigin + performance.now()) * 1000) });
    }
  };
  await Promise.all(Array.from({ length: 10 }, caller));
  say({ finished: true });
};

switch (task.work) {
  case 'schema':
    await store.schema.migrate();
    break;
  case 'append':
    await measure((stream, nth) => append(stream, nth * task.events, task.events));
    break;
  case 'command':
    await measure((stream) => handle(store, stream, () => counted()));
    break;
  case 'load':
    await load();
    break;
  case 'follow':
    await follow({ batchSize: 1000, pullingFrequencyInMs: 10 });
    await once(stdin, 'close');
    break;
  case 'visible':
    await visible();
    await once(stdin, 'close');
    break;
  default:
    throw new Error(`no such work: ${task.work}`);
}
// Everything is said: what still runs is the consumer.
process.stdout.write('', () => process.exit(0));
