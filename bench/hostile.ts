/*
 * Measures what the cheapest bodies cost the server: its CPU time for one request of each kind, as a multiple of the CPU time for
 * an honest batch of 1,000 heartbeats. With --against it also measures another clone, for example at a commit before a limit was
 * added. The database is not included, because none of these requests writes a heartbeat.
 */
import { resolve } from 'node:path'
import { gzipSync } from 'node:zlib'
import { repository } from '../lib/repository.ts'
import { say } from '../lib/progress.ts'
import { median, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { usageOf } from './processes.ts'
import { enroll, startServer, withStore } from './store.ts'

const options = {
  rounds: { otherwise: 3, what: 'number of rounds' },
  requests: { otherwise: 100, what: 'requests of each kind in each measurement' },
  connections: { otherwise: 16, what: 'connections that send them' },
  against: { otherwise: '', what: 'directory of another clone, with its packages' },
} as const

const MiB = 2 ** 20
const NDJSON = 'application/x-ndjson'
const JSON_TYPE = 'application/json'

interface Kind {
  name: string
  type: string
  body: Buffer
  isPacked?: boolean
}

function kinds(): Kind[] {
  const beat = (n: number) => ({
    ts: new Date(Date.now() - 20_000 * n).toISOString(),
    battery_pct: n % 101,
    network_type: 'wifi',
    unity_running: true,
  })
  const wrong = '{"ts":1,"battery_pct":"","network_type":1,"unity_running":1,"signal_dbm":"","agent_version":1,"device_id":""}\n'
  const keys = Array.from({ length: 100_000 }, (_, n) => `"${n.toString(36)}z":0`).join()
  const shapes = Array.from({ length: 16_000 }, (_, n) => `{"${n.toString(36)}z":0}`).join()
  return [
    {
      name: 'an honest batch',
      type: JSON_TYPE,
      body: Buffer.from(JSON.stringify(Array.from({ length: 1_000 }, (_, n) => beat(n)))),
    },
    { name: '1 MiB of empty lines', type: NDJSON, body: Buffer.alloc(MiB, '\n'), isPacked: true },
    { name: '1 MiB of lines with a space', type: NDJSON, body: Buffer.alloc(MiB, ' \n'), isPacked: true },
    { name: '100,000 different keys', type: JSON_TYPE, body: Buffer.from(`[{${keys}}]`), isPacked: true },
    { name: '16,000 different objects', type: JSON_TYPE, body: Buffer.from(`[{"junk":[${shapes}]}]`), isPacked: true },
    { name: '260,000 fractions', type: JSON_TYPE, body: Buffer.from(`[${'0.1,'.repeat(260_000)}1]`), isPacked: true },
    { name: '1,000 items, each field wrong', type: NDJSON, body: Buffer.from(wrong.repeat(1_000)), isPacked: true },
    {
      name: 'an agent_version of 1 MiB',
      type: JSON_TYPE,
      body: Buffer.from(`[{"agent_version":"${'a'.repeat(MiB - 100)}"}]`),
      isPacked: true,
    },
  ]
}

export async function benchHostile(args: string[]): Promise<Figure[]> {
  const given = readOptions('bench -- hostile', args, options)
  const ways = [
    { name: 'here', root: repository },
    ...(given.against === '' ? [] : [{ name: 'in the other clone', root: resolve(given.against) }]),
  ]
  return withStore(async store => {
    const [device] = await enroll(store, 1)
    const all = kinds().map(kind => ({ ...kind, body: kind.isPacked ? gzipSync(kind.body, { level: 9 }) : kind.body }))
    const found = new Map<string, number[]>()
    for (let round = 1; round <= given.rounds; round++) {
      for (const { name: way, root } of ways) {
        const server = await startServer(store, {
          variant: 'without-database.ts',
          root,
          env: { WORKERS: '1', DEVICE_REQUESTS_PER_MINUTE: '0' },
        })
        try {
          let honest = NaN
          for (const { name, type, body, isPacked } of all) {
            const send = async (requests: number) => {
              for (let n = 0; n < requests; n++) {
                const response = await fetch(`${server.url}/v1/heartbeats`, {
                  method: 'POST',
                  body: new Uint8Array(body),
                  headers: {
                    authorization: `Bearer ${device!.token}`,
                    'content-type': type,
                    ...(isPacked && { 'content-encoding': 'gzip' }),
                  },
                })
                await response.arrayBuffer()
                if (response.status >= 500) throw new Error(`${name}: ${response.status}`)
              }
            }
            await send(10)
            const before = await usageOf(server.pid)
            await Promise.all(
              Array.from({ length: given.connections }, () => send(Math.ceil(given.requests / given.connections))),
            )
            const { cpuSeconds } = await usageOf(server.pid)
            const ms =
              (1e3 * (cpuSeconds - before.cpuSeconds)) / (given.connections * Math.ceil(given.requests / given.connections))
            if (name === all[0]!.name) honest = ms
            const label = `${name}, ${body.length.toLocaleString('en')} bytes, ${way}`
            found.set(label, [...(found.get(label) ?? []), name === all[0]!.name ? ms : ms / honest])
            say(`round ${round}: ${label}: ${ms.toFixed(2)} ms`)
          }
        } finally {
          await server.stop()
        }
      }
    }
    return [...found].map(([name, values]) => ({
      name,
      measured: median(values),
      unit: name.startsWith(all[0]!.name) ? 'ms' : '×',
    }))
  })
}
