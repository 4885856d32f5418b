/*
 * Measures what one statement for many heartbeats gains, and how close batches come to what Postgres alone can do, on this machine,
 * in this run. (What single heartbeats cost beside HTTP alone: the scenario targets.) Each round measures these one after the other,
 * each saturated by keep-alive connections that send again as soon as they have an answer:
 *
 * single: this server, one heartbeat per request
 * one: the same server with one statement per heartbeat, as many at once as the pool has connections
 * batched: this server with a gateway's batches
 * pgbench: the writer's statement with batches of the same size, sent straight to Postgres
 *
 * Ratios are computed within a round, and their median is quoted. Each measurement has a server of its own, so that no two
 * compete for connections to Postgres. Its start and first requests are not measured. A device's `ts` starts five days ago and
 * advances by a bucket with each request, so that every heartbeat is stored and advances last status, as a real one does. The
 * sender shares the processors with the server and Postgres; its share of them is also a figure.
 */
import { say } from '../lib/progress.ts'
import { atLeast, median, type Figure } from './figure.ts'
import { startSender } from './heartbeats.ts'
import { UsageError } from '../lib/errors.ts'
import { readOptions } from './options.ts'
import { clientsOf, pgbench } from './pgbench.ts'
import { cpuPercent } from './processes.ts'
import { enroll, startServer, withStore, type Store } from './store.ts'
import type { Template } from './sender.ts'

const options = {
  rounds: { otherwise: 3, what: 'number of rounds' },
  seconds: { otherwise: 15, what: 'seconds of each measurement' },
  warmup: { otherwise: 5, least: 0, what: 'seconds before each measurement' },
  devices: { otherwise: 10_000, what: 'devices that send, and as many others for pgbench' },
  connections: { otherwise: [256, 1_024], what: 'connections that send single heartbeats' },
  batches: { otherwise: [100, 1_000], what: 'heartbeats per batch' },
  flight: { otherwise: 8_000, what: 'heartbeats that are on their way in batches at once; this sets the number of gateways' },
  clients: { otherwise: 2, what: 'clients of pgbench; the writer has this many statements at once' },
  workers: { otherwise: undefined, what: "processes of each server, instead of the server's default" },
} as const

export async function benchLimits(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- limits', args, options)
  if (Math.max(...given.batches) > 1_000) throw new UsageError('--batches takes at most 1000, as the server does')
  if (Math.max(...given.batches) * given.clients > given.devices)
    throw new UsageError('--devices must be large enough for one batch of each client')
  // Few devices send what a fleet would. The requests are still counted.
  const env: Record<string, string> = {
    DEVICE_REQUESTS_PER_MINUTE: '100000',
    ...(given.workers && { WORKERS: String(given.workers) }),
  }
  return withStore(async store => {
    const devices = await enroll(store, given.devices)
    const ids = (await enroll(store, given.devices, 'pgbench')).map(({ device_id }) => device_id)
    const straight = pgbench(store, clientsOf(store, ids, given.clients))
    const [gateway] = await store.admin<{ token: string }[]>`select fleet.create_gateway_token('bench') as token`
    const sender = startSender()
    try {
      let from = Date.now() - 5 * 86_400_000
      const senderCpu: number[] = []
      const saturate = async (variant: string | undefined, connections: number, templates: Template[], items: number) => {
        const server = await startServer(store, { variant, env })
        try {
          await sender.connect(server.port, connections, templates)
          await store.admin`checkpoint`
          const { ok, errors, problems, seconds, cpuSeconds, until } = await sender.closed(given.seconds, given.warmup, from)
          if (errors) throw new Error(`${errors} of ${ok + errors} requests failed: ${JSON.stringify(problems)}`)
          const duplicates = (await server.metrics()).get('hb_deduplicated_total') ?? 0
          if (duplicates) throw new Error(`${duplicates} heartbeats were duplicates, so this does not measure storing`)
          await checkVariant(
            store,
            variant,
            devices.slice(0, 50).map(({ device_id }) => device_id),
            from,
          )
          from = until
          senderCpu.push(cpuPercent(cpuSeconds, seconds))
          return (ok * items) / seconds
        } finally {
          await server.stop()
        }
      }

      const singles = given.connections.map(connections => ({
        connections,
        ours: [] as number[],
        one: [] as number[],
      }))
      const batched = given.batches.map(size => ({ size, ours: [] as number[], pgbench: [] as number[] }))
      for (let round = 1; round <= given.rounds; round++) {
        for (const { connections, ours, one } of singles) {
          ours.push(await saturate(undefined, connections, devices, 1))
          one.push(await saturate('one-insert.ts', connections, devices, 1))
          say(`round ${round}: ${connections} connections: single ${rate(ours)}, one INSERT each ${rate(one)}`)
        }
        for (const { size, ours: here, pgbench: there } of batched) {
          const templates: Template[] = []
          for (let first = 0; first + size <= devices.length; first += size) {
            templates.push({
              token: gateway?.token ?? '',
              devices: devices.slice(first, first + size).map(({ device_id }) => device_id),
            })
          }
          here.push(await saturate(undefined, Math.ceil(given.flight / size), templates, size))
          await store.admin`checkpoint`
          there.push((await straight(size, given.seconds)).perSecond)
          say(`round ${round}: batches of ${size} ${rate(here)}, pgbench ${rate(there)}`)
        }
      }
      const ratio = (mine: number[], other: number[]) => median(mine.map((value, round) => value / (other[round] ?? NaN)))
      return [
        ...singles.flatMap(({ connections, ours, one }): Figure[] => [
          { name: `single heartbeats, ${connections} connections`, measured: median(ours), unit: 'rows/s' },
          { name: `one INSERT per request, ${connections}`, measured: median(one), unit: 'rows/s' },
          { name: `single / one INSERT per request, ${connections}`, measured: ratio(ours, one), unit: '', target: atLeast(5) },
        ]),
        ...batched.flatMap(({ size, ours: here, pgbench: there }): Figure[] => [
          { name: `batches of ${size}`, measured: median(here), unit: 'rows/s' },
          { name: `pgbench, batches of ${size}`, measured: median(there), unit: 'rows/s' },
          { name: `batches of ${size} / pgbench`, measured: ratio(here, there), unit: '', target: atLeast(0.8) },
        ]),
        { name: 'CPU of the sender, of all processors, highest', measured: Math.max(...senderCpu), unit: '%' },
      ]
    } finally {
      sender.end()
    }
  })
}

/** Checks what the first turn left in the database, so that a variant that no longer does anything is noticed. */
async function checkVariant({ admin }: Store, variant: string | undefined, deviceIds: number[], from: number) {
  const [found] = await admin<{ rows: number; statements: number }[]>`
    select count(*)::integer as rows, count(distinct xmin::text)::integer as statements
    from fleet.device_heartbeats
    where device_id = any (${deviceIds}::bigint[]) and ts = ${new Date(from)}
  `
  const { rows, statements } = found!
  const isRight = rows === deviceIds.length && (variant === undefined || statements === rows)
  if (!isRight)
    throw new Error(
      `${variant ?? 'the server'} left ${rows} of ${deviceIds.length} heartbeats in the database, by ${statements} statements`,
    )
}

function rate(values: number[]) {
  return `${Math.round(values.at(-1) ?? NaN).toLocaleString('en')}/s`
}
