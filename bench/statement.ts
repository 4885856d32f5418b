/**
 * npm run bench -- statement: what fleet.ingest_batch() costs Postgres for each heartbeat: from a trusted caller, with the tokens of
 * devices that each sent one, and with the token of a gateway that sent all; beside the same insert and upsert without verdicts,
 * answers or quarantine. All take the same kind of batch, as JSON, in turns, in one session.
 */
import { hash } from 'node:crypto'
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

const AUTHENTICATED = `
  select results::text, reasons::text, tss::text, device_ids::text, next_intervals::text
  from fleet.ingest_batch($1::text::json, $2::text::timestamptz, $3::text::bytea[], $4::text::integer[])`

/** A statement, and the hashes of its tokens with the number of items of each. */
interface Way {
  statement: string
  tokens?: (hashes: string[]) => [hashes: string[], items: number[]]
}

const TRUSTED = 'fleet.ingest_batch()'
const WAYS: Record<string, Way> = {
  [TRUSTED]: {
    statement: 'select results::text, reasons::text, tss::text from fleet.ingest_batch($1::text::json, $2::text::timestamptz)',
  },
  'insert and upsert only': { statement: 'select fleet.bench_insert($1::text::json, $2::text::timestamptz)' },
  'with a token for each heartbeat': { statement: AUTHENTICATED, tokens: hashes => [hashes, hashes.map(() => 1)] },
  'with the token of a gateway': { statement: AUTHENTICATED, tokens: ({ length }) => [[''], [length]] },
}

export async function benchStatement(args: string[]): Promise<Figure[]> {
  const options = readOptions('bench -- statement', args, OPTIONS)
  return withStore(async store => {
    const enrolled = await enroll(store, options.devices)
    const devices = enrolled.map(({ device_id }) => device_id)
    const hashes = enrolled.map(({ token }) => hash('sha256', token))
    const [gateway] = await store.admin<{ token: string }[]>`select fleet.create_gateway_token('bench') as token`
    const gatewayHash = hash('sha256', gateway!.token)
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
      const measure = async ({ statement, tokens }: Way) => {
        const received = new Date(start + beats * 10_000).toISOString()
        const calls = Array.from({ length: options.batches }, (_, n) => {
          const json = batch(devices, n * options.size, options.size, start)
          if (tokens === undefined) return [json, received]
          const own = Array.from({ length: options.size }, (_, at) => hashes[(n * options.size + at) % hashes.length]!)
          const [given, items] = tokens(own)
          return [json, received, `{${given.map(each => `\\\\x${each || gatewayHash}`).join(',')}}`, `{${items.join(',')}}`]
        })
        const before = await usageOf(backend!.pid)
        start += beats * 10_000
        for (const call of calls) await session.unsafe(statement, call)
        return (((await usageOf(backend!.pid)).cpuSeconds - before.cpuSeconds) * 1e6) / (options.batches * options.size)
      }
      const found = Object.fromEntries(Object.keys(WAYS).map(way => [way, [] as number[]]))
      await step(`Measuring ${options.rounds} rounds`, async () => {
        for (let round = -1; round < options.rounds; round++) {
          for (const [way, each] of Object.entries(WAYS)) {
            const cost = await measure(each)
            if (round >= 0) found[way]!.push(cost)
          }
        }
      })
      const [ingest, insert, devicesOwn, gateways] = Object.values(found) as [number[], number[], number[], number[]]
      const ratio = (costs: number[], base: number[]) => median(costs.map((cost, n) => cost / base[n]!))
      return [
        ...Object.entries(found).map(([way, costs]) => ({
          name: `${way}: CPU a heartbeat`,
          measured: median(costs),
          unit: 'µs',
        })),
        {
          name: 'fleet.ingest_batch() ÷ insert and upsert only',
          measured: ratio(ingest, insert),
          unit: '',
          target: atMost(1.05),
        },
        { name: 'with a token for each heartbeat ÷ without', measured: ratio(devicesOwn, ingest), unit: '' },
        { name: 'with the token of a gateway ÷ without', measured: ratio(gateways, ingest), unit: '' },
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
