import { spawn } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { plainEnv } from '../local/config.ts'
import type { Store } from './store.ts'

/** What one client of pgbench sends, and where. */
export interface Client {
  url: string
  deviceIds: number[]
}

const BUCKET_S = 10
const FIRST = 10 * 3600
/** No measurement starts later in the devices' day than this: one uses up to four hours of the devices' time. */
const LAST = 20 * 3600

/**
 * Runs pgbench with the writer's own statement. Each client has its own devices, in batches of equal size. A script is one pass
 * over the devices, and `:clock` advances by a bucket with each pass. In the JSON it is written as hhmmss, from 10:00 on, because
 * pgbench has only whole numbers. The variable's name is as long as its value, because pgbench otherwise moves the rest of the
 * text for each.
 * @param daysAgo the day of the first heartbeats; another one for each who sends for the same devices
 */
export function pgbench({ cluster, admin }: Store, clients: Client[], daysAgo = 6) {
  let day = Date.now() - daysAgo * 86_400_000
  let clock = FIRST

  /**
   * Returns the rows, and the rows per second.
   * @throws an Error if a heartbeat was not stored
   */
  return async (batch: number, seconds: number) => {
    if (clock > LAST) {
      day += 86_400_000
      clock = FIRST
    }
    const directory = await mkdtemp(join(tmpdir(), 'fleet-pgbench-'))
    try {
      const runs = await Promise.all(
        clients.map(async ({ url, deviceIds }, client) => {
          const script = join(directory, `${client}.sql`)
          await writeFile(script, scriptOf(deviceIds, batch, new Date(day).toISOString().slice(0, 10).replaceAll('-', '')))
          const output = await run(cluster.program('pgbench'), [
            '--no-vacuum',
            '--client=1',
            `--time=${seconds}`,
            `--file=${script}`,
            `--define=seconds=${clock}`,
            url,
          ])
          const passes = Number(/number of transactions actually processed: (\d+)/.exec(output)?.[1])
          const rate = Number(/^tps = ([\d.]+)/m.exec(output)?.[1])
          if (!(passes > 0 && rate > 0))
            throw new Error(`pgbench did not finish a pass over ${deviceIds.length} devices in ${seconds} s:\n${output}`)
          return { passes, rows: passes * deviceIds.length, perSecond: rate * deviceIds.length }
        }),
      )
      const [{ refused } = { refused: 0 }] = await admin<{ refused: number }[]>`
        select count(*)::integer as refused from fleet.heartbeat_quarantine
      `
      if (refused > 0) throw new Error(`${refused} heartbeats were quarantined, so this is not the cost of storing them`)
      clock += BUCKET_S * (1 + Math.max(...runs.map(({ passes }) => passes)))
      const sum = (values: number[]) => values.reduce((sum, value) => sum + value, 0)
      return { rows: sum(runs.map(run => run.rows)), perSecond: sum(runs.map(run => run.perSecond)) }
    } finally {
      await rm(directory, { recursive: true, force: true })
    }
  }
}

/** Clients that share the devices, and log in at one cluster. */
export function clientsOf({ cluster }: Store, deviceIds: number[], clients: number): Client[] {
  const share = Math.floor(deviceIds.length / clients)
  return Array.from({ length: clients }, (_, client) => ({
    url: cluster.url('fleet_server', 'fleet'),
    deviceIds: deviceIds.slice(client * share, (client + 1) * share),
  }))
}

function scriptOf(deviceIds: number[], batch: number, date: string) {
  const lines = [
    `\\set seconds :seconds + ${BUCKET_S}`,
    '\\set clock (:seconds / 3600) * 10000 + (:seconds / 60 % 60) * 100 + :seconds % 60',
  ]
  for (let first = 0; first < deviceIds.length; first += batch) {
    const items = deviceIds.slice(first, first + batch).map(device_id => ({
      ts: `${date}T:clock+00`,
      battery_pct: 81,
      network_type: 'wifi',
      unity_running: true,
      signal_dbm: -61,
      agent_version: '3.1.0',
      device_id,
      ip: '127.0.0.1',
    }))
    lines.push(`select results::text, reasons::text, tss::text from fleet.ingest_batch('${JSON.stringify(items)}'::text::json);`)
  }
  return `${lines.join('\n')}\n`
}

function run(program: string, args: string[]) {
  return new Promise<string>((resolve, reject) => {
    const child = spawn(program, args, { env: plainEnv(), stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    child.stdout.on('data', (chunk: Buffer) => {
      output += chunk.toString()
    })
    child.stderr.on('data', (chunk: Buffer) => {
      output += chunk.toString()
    })
    child.once('error', reject)
    child.once('close', code => {
      if (code === 0) resolve(output)
      else reject(new Error(`pgbench ended with ${code}:\n${output}`))
    })
  })
}
