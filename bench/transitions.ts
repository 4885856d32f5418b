// Measures what transitions cost in a large fleet: a minute in which nothing changes, a minute in which a whole cohort goes offline,
// and a heartbeat that ends a silence. Heartbeats of other devices go on meanwhile.
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from 'postgres'
import { say, step } from '../lib/progress.ts'
import { atMost, median, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { readOptions } from './options.ts'
import { schedule } from './schedule.ts'
import type { Sent } from './sender.ts'
import { enroll, hearFrom, startServer, withStore } from './store.ts'

/** The first seconds of each measurement, which do not count. */
const WARMUP = 5
/** The heartbeats of a batch that is sent straight to Postgres. */
const BATCH = 500

const OPTIONS = {
  devices: { otherwise: 1_000_000, what: 'devices of the fleet' },
  lost: { otherwise: 100_000, what: 'devices of the cohort that goes offline' },
  senders: { otherwise: 30_000, what: 'devices that send a heartbeat a minute meanwhile' },
  rounds: { otherwise: 3, what: 'number of rounds' },
  quiet: { otherwise: 20, what: 'seconds of the quiet measurement of a round' },
} as const

/** The targets are the project's own (issue "Tell people"). */
export async function benchTransitions(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- transitions', args, OPTIONS)
  return withStore(async store => {
    const { admin } = store
    // The job would run between the steps.
    await admin`update cron.job set schedule = '0 0 1 1 *'`
    const senders = await enroll(store, given.senders)
    await step(`Enrolling ${given.devices.toLocaleString('en')} devices`, async () => {
      await admin`
        insert into fleet.devices (alias, cohort, token_hash)
        select 'fleet-' || n, case when n <= ${given.lost}::integer then 'lost' else 'fleet-' || n % 50 end, fleet.hash_token('fleet-' || n)
        from generate_series(1, ${given.devices}::integer) n`
      await hearFrom(admin)
      await admin`vacuum (analyze) fleet.devices`
      await admin`vacuum (analyze) fleet.device_last_status`
    })
    for (const name of ['on-call', 'lost-only', 'every-change'])
      await admin`
        select fleet.create_webhook(
          ${name}, 'https://127.0.0.1/', p_cohort => ${name === 'lost-only' ? 'lost' : null},
          p_events => ${name === 'every-change' ? ['offline', 'back', 'unity_down', 'clock_skewed', 'late', 'online'] : ['offline', 'back']}
        )`
    // Everything that was seen while the fleet was loaded.
    await admin`call fleet.mark_silent()`

    const server = await startServer(store)
    const sender = startSender()
    const fleet = { devices: given.senders, interval: 60, jitter: 15, retries: 0 }
    const [calm, busy]: [Sent[], Sent[]] = [[], []]
    const [looks, minutes, outages, back, steady]: number[][] = [[], [], [], [], []]
    let [messages, told] = [0, 0]
    try {
      await sender.connect(server.port, 1_000, senders)
      for (let round = 1; round <= given.rounds; round++) {
        await stayHeard(admin)
        await admin`call fleet.mark_silent()`
        await admin`checkpoint`
        looks!.push(await timed(() => admin`select fleet.devices_to_note()`))
        minutes!.push(await timed(() => admin`call fleet.mark_silent()`))
        calm.push(await sender.open(schedule({ ...fleet, duration: WARMUP + given.quiet }), WARMUP))

        await stayHeard(admin)
        const [before] = await counts(admin)
        const { count: heard } = await admin`
          update fleet.device_last_status ls set last_received_at = now() - interval '11 minutes'
          from fleet.devices d where d.device_id = ls.device_id and d.cohort = 'lost' and ls.last_received_at is not null`
        await admin`vacuum fleet.device_last_status`
        await admin`checkpoint`
        // This is longer than the minute takes. It is stopped at its end.
        const sending = sender.open(schedule({ ...fleet, duration: 600 }), WARMUP)
        await sleep(WARMUP * 1000)
        outages!.push(await timed(() => admin`call fleet.mark_silent()`))
        sender.stop()
        busy.push(await sending)
        const [after] = await counts(admin)
        told += after!.transitions - before!.transitions
        messages += after!.messages - before!.messages
        const offline = after!.offline - before!.offline
        if (offline !== heard) throw new Error(`${offline} devices went offline, and ${heard} should have`)

        const lost = await admin<
          { device_id: string }[]
        >`select device_id from fleet.devices where cohort = 'lost' order by 1 limit ${10 * BATCH}`
        for (let n = 0; n < 10; n++) {
          const ids = lost.slice(n * BATCH, (n + 1) * BATCH).map(row => Number(row.device_id))
          back!.push((await timed(() => send(admin, ids, 0))) / BATCH)
          steady!.push((await timed(() => send(admin, ids, 11))) / BATCH)
        }
        say(
          `round ${round}: look ${looks!.at(-1)!.toFixed(0)} ms, quiet minute ${minutes!.at(-1)!.toFixed(0)} ms, outage ` +
            `${(outages!.at(-1)! / 1000).toFixed(1)} s; p99 ${calm.at(-1)!.latency.p99.toFixed(1)} ms and ${busy.at(-1)!.latency.p99.toFixed(1)} ms`,
        )
        // The next round begins with everybody online.
        await hearFromLost(admin)
      }
    } finally {
      sender.end()
      await server.stop()
    }
    const p99 = (sent: Sent[]) => sent.map(({ latency }) => latency.p99)
    return [
      { name: 'devices that may have changed, of a fleet in which none has', measured: median(looks!), unit: 'ms' },
      { name: "the whole minute's job in that fleet", measured: median(minutes!), unit: 'ms' },
      {
        name: `the minute in which ${given.lost.toLocaleString('en')} devices go offline`,
        measured: median(outages!) / 1000,
        unit: 's',
      },
      { name: 'transitions of such a minute', measured: told / given.rounds, unit: '' },
      { name: 'messages of such a minute, to 3 webhooks', measured: messages / given.rounds, unit: '', target: atMost(3) },
      { name: 'ingest p99 quiet', measured: median(p99(calm)), unit: 'ms' },
      { name: 'ingest p99 in that minute', measured: median(p99(busy)), unit: 'ms' },
      {
        name: 'ingest p99 in that minute / quiet',
        measured: median(p99(busy).map((value, round) => value / p99(calm)[round]!)),
        unit: '',
        target: atMost(2),
      },
      { name: 'a heartbeat in a batch straight to Postgres', measured: 1000 * median(steady!), unit: 'µs' },
      { name: 'one that ends a silence', measured: 1000 * median(back!), unit: 'µs' },
      { name: 'errors', measured: [...calm, ...busy].reduce((sum, { errors }) => sum + errors, 0), unit: '', target: atMost(0) },
    ]
  })
}

/** The devices that are not senders are heard from again, as those that were heard from a minute ago. */
async function stayHeard(admin: Sql) {
  await admin`
    update fleet.device_last_status ls set last_received_at = now()
    where ls.last_received_at is not null and ls.noted_status in ('online', 'unity_down')`
  await admin`vacuum fleet.device_last_status`
}

async function hearFromLost(admin: Sql) {
  await admin`
    select fleet.ingest(json_agg(json_build_object('device_id', d.device_id, 'ts', now() + interval '30 seconds')))
    from (select device_id, device_id / ${BATCH}::integer as batch from fleet.devices where cohort = 'lost') d
    group by d.batch`
  await admin`select fleet.end_incidents()`
}

function counts(admin: Sql) {
  return admin<{ transitions: number; offline: number; messages: number }[]>`
    select count(*)::integer as transitions, count(*) filter (where event = 'offline')::integer as offline,
      (
        -- One of the webhooks is told of every change, also of senders that are late in the pauses.
        select count(*)::integer from fleet.webhook_deliveries m left join fleet.devices d using (device_id)
        where m.device_id is null or d.cohort = 'lost'
      ) as messages
    from fleet.device_transitions where cohort = 'lost'`
}

async function send(admin: Sql, ids: number[], seconds: number) {
  await admin`
    select fleet.ingest(json_agg(json_build_object('device_id', d.device_id, 'ts', now() + ${seconds}::integer * interval '1 second')))
    from unnest(${ids}::bigint[]) d (device_id)`
}

async function timed(work: () => Promise<unknown>) {
  const since = performance.now()
  await work()
  return performance.now() - since
}
