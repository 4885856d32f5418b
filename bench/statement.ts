/**
 * npm run bench -- statement: what fleet.ingest_batch() costs Postgres for each heartbeat, beside the same insert and upsert without
 * verdicts, answers or quarantine. Both take the same kind of batch, as JSON, in turns, in one session.
 */
import postgres from 'postgres'
import { step } from '../lib/progress.ts'
import { atMost, median, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { usageOf } from './processes.ts'
import { enroll, withStore } from './store.ts'

const OPTIONS = {
  rounds: { otherwise: 11, what: 'rounds; each measures every way, in turns' },
  batches: { otherwise: 100, what: 'batches of a measurement' },
  size: { otherwise: 500, what: 'heartbeats in a batch, each of another device' },
  devices: { otherwise: 20_000, what: 'devices that take turns' },
} as const

const WAYS = {
  'fleet.ingest_batch()':
    'select results::text, reasons::text, tss::text from fleet.ingest_batch($1::text::json, $2::text::timestamptz)',
  'insert and upsert only': 'select fleet.bench_insert($1::text::json, $2::text::timestamptz)',
}

export async function benchStatement(args: string[]): Promise<Figure[]> {
  const options = readOptions('bench -- statement', args, OPTIONS)
  return withStore(async store => {
    const devices = (await enroll(store, options.devices)).map(({ device_id }) => device_id)
    await store.admin.unsafe(`
      create function fleet.bench_insert(p_batch json, p_received_at timestamptz) returns void language sql
      security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC' set jit = off as $$
        insert into fleet.device_heartbeats (
          ts, received_at, device_id, signal_dbm, battery_pct, unity_running, network_type, agent_version, ip, extra
        )
        select i.ts, p_received_at, i.device_id, i.signal_dbm, i.battery_pct, i.unity_running, i.network_type, i.agent_version, i.ip, i.extra
        from json_to_recordset(p_batch) as i (
          device_id bigint, ts timestamptz, signal_dbm smallint, battery_pct smallint, unity_running boolean, network_type text,
          agent_version text, ip inet, extra jsonb
        )
        order by i.device_id, i.ts
        on conflict do nothing
      $$`)
    const session = postgres(store.cluster.url('postgres', 'fleet'), { max: 1, onnotice: () => {} })
    try {
      const [backend] = await session<{ pid: number }[]>`select pg_backend_pid() as pid`
      // Each measurement takes the next buckets, up to now.
      const beats = Math.ceil((options.batches * options.size) / options.devices)
      let start = Date.now() - (options.rounds + 1) * Object.keys(WAYS).length * beats * 10_000
      const measure = async (statement: string) => {
        const batches = Array.from({ length: options.batches }, (_, n) => batch(devices, n * options.size, options.size, start))
        const before = await usageOf(backend!.pid)
        start += beats * 10_000
        for (const json of batches) await session.unsafe(statement, [json, new Date(start).toISOString()])
        return (((await usageOf(backend!.pid)).cpuSeconds - before.cpuSeconds) * 1e6) / (options.batches * options.size)
      }
      const found = Object.fromEntries(Object.keys(WAYS).map(way => [way, [] as number[]]))
      await step(`Measuring ${options.rounds} rounds`, async () => {
        for (let round = -1; round < options.rounds; round++) {
          for (const [way, statement] of Object.entries(WAYS)) {
            const cost = await measure(statement)
            if (round >= 0) found[way]!.push(cost)
          }
        }
      })
      const [ingest, insert] = Object.values(found) as [number[], number[]]
      return [
        ...Object.entries(found).map(([way, costs]) => ({
          name: `${way}: CPU a heartbeat`,
          measured: median(costs),
          unit: 'µs',
        })),
        {
          name: 'fleet.ingest_batch() ÷ insert and upsert only',
          measured: median(ingest.map((cost, n) => cost / insert[n]!)),
          unit: '',
          target: atMost(1.05),
        },
      ]
    } finally {
      await session.end({ timeout: 1 })
    }
  })
}

function batch(devices: number[], from: number, size: number, start: number) {
  return JSON.stringify(
    Array.from({ length: size }, (_, n) => {
      const nth = from + n
      return {
        device_id: devices[nth % devices.length],
        ts: new Date(start + Math.floor(nth / devices.length) * 10_000 + (nth % 9000)).toISOString(),
        battery_pct: nth % 100,
        network_type: 'wifi',
        unity_running: true,
        signal_dbm: -61,
        agent_version: '3.1.0',
        ip: '10.0.0.1',
      }
    }),
  )
}
