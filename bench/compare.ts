// npm run bench -- compare --base <directory> --new <directory>: ingest of two versions, each in a checkout with its own npm
// start, measured in turns with wrk.
import { spawn, type ChildProcess } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { UsageError } from '../lib/errors.ts'
import { say, step } from '../lib/progress.ts'
import { plainEnv } from '../local/config.ts'
import { median, type Figure } from './figure.ts'
import { readOptions } from './options.ts'
import { postmasterOf, treeOf, usageOf } from './processes.ts'
import { runWrk, wrkScript } from './wrk.ts'

const OPTIONS = {
  base: { otherwise: '', what: 'checkout of the version to compare with' },
  new: { otherwise: '', what: 'checkout of the other version' },
  rounds: { otherwise: 7, what: 'rounds; each measures both versions, in turns' },
  seconds: { otherwise: 6, what: 'seconds of a measurement' },
  connections: { otherwise: 256, what: 'connections of wrk' },
  batch: { otherwise: 1, what: 'heartbeats in a request; 1: POST /v1/heartbeat' },
  devices: { otherwise: 2_000, what: 'devices that take turns' },
  workers: { otherwise: 2, what: 'WORKERS of each server' },
} as const

const FIRST_PORT = 18_080

interface Stand {
  name: string
  child: ChildProcess
  url: string
  adminKey: string
  script: Awaited<ReturnType<typeof wrkScript>>
  postmaster: number
  /** Requests so far. */
  sent: number
  /** Measured. */
  rates: number[]
  serverCpu: number[]
  postgresCpu: number[]
}

export async function benchCompare(args: string[]): Promise<Figure[]> {
  const options = readOptions('bench -- compare', args, OPTIONS)
  if (!options.base || !options.new) throw new UsageError('compare needs --base and --new: two checkouts with npm ci done')
  const stands: Stand[] = []
  try {
    for (const [n, name] of (['base', 'new'] as const).entries())
      stands.push(await start(name, resolve(options[name]), FIRST_PORT + n, options))
    for (const stand of stands) await measure(stand, options)
    for (const stand of stands) for (const list of [stand.rates, stand.serverCpu, stand.postgresCpu]) list.length = 0
    for (let round = 0; round < options.rounds; round++) {
      for (const stand of round % 2 === 0 ? stands : stands.toReversed()) await measure(stand, options)
      say(`round ${round + 1}: ${stands.map(({ name, rates }) => `${name} ${Math.round(rates.at(-1)!)}/s`).join(', ')}`)
    }
  } finally {
    for (const { child, script } of stands) {
      await script.remove()
      await stop(child)
    }
  }
  const [base, other] = stands as [Stand, Stand]
  const ratio = (list: 'rates' | 'serverCpu' | 'postgresCpu') => median(base[list].map((value, n) => other[list][n]! / value))
  return [
    { name: 'heartbeats/s, base', measured: median(base.rates), unit: '/s' },
    { name: 'heartbeats/s, new', measured: median(other.rates), unit: '/s' },
    { name: 'heartbeats/s, new ÷ base (median of rounds)', measured: ratio('rates'), unit: '' },
    { name: "server's CPU a heartbeat, base", measured: median(base.serverCpu), unit: 'µs' },
    { name: "server's CPU a heartbeat, new", measured: median(other.serverCpu), unit: 'µs' },
    { name: "server's CPU a heartbeat, new ÷ base", measured: ratio('serverCpu'), unit: '' },
    { name: "Postgres's CPU a heartbeat, base", measured: median(base.postgresCpu), unit: 'µs' },
    { name: "Postgres's CPU a heartbeat, new", measured: median(other.postgresCpu), unit: 'µs' },
    { name: "Postgres's CPU a heartbeat, new ÷ base", measured: ratio('postgresCpu'), unit: '' },
  ]
}

async function start(
  name: string,
  directory: string,
  port: number,
  options: { devices: number; workers: number; batch: number },
) {
  const url = `http://127.0.0.1:${port}`
  const child = spawn('npm', ['start'], {
    cwd: directory,
    env: {
      ...plainEnv(),
      PORT: String(port),
      WORKERS: String(options.workers),
      WRONG_TOKENS_PER_MINUTE: '1000000',
      DEVICE_REQUESTS_PER_MINUTE: '100000',
    },
    stdio: ['ignore', 'ignore', 'inherit'],
    detached: true,
  })
  await step(`Starting ${name} in ${directory}`, async () => {
    for (let tries = 0; ; tries++) {
      const isReady = await fetch(`${url}/readyz`).then(
        answer => answer.ok,
        () => false,
      )
      if (isReady) return
      if (tries > 600 || child.exitCode !== null) {
        await stop(child)
        throw new Error(`${name} did not start`)
      }
      await sleep(500)
    }
  })
  const adminKey = (await readFile(join(directory, '.local', 'admin-key'), 'utf8')).trim()
  const tokens = await step(`Enrolling ${options.devices} devices`, async () => {
    const found: string[] = []
    for (let n = 0; n < options.devices; n++) {
      const answer = await fetch(`${url}/admin/devices`, {
        method: 'POST',
        headers: { 'x-admin': adminKey, 'content-type': 'application/json' },
        body: JSON.stringify({ alias: `compare-${process.pid}-${n}` }),
      })
      found.push(((await answer.json()) as { token: string }).token)
    }
    return found
  })
  const script = await wrkScript(`compare-${name}`, luaOf(tokens, options.batch))
  const postmaster = await postmasterOf(join(directory, '.local', 'pg', 'data'))
  return { name, child, url, adminKey, script, postmaster, sent: 0, rates: [], serverCpu: [], postgresCpu: [] }
}

/**
 * For wrk: the devices take turns, each ten seconds further than the last time, from six hours ago on. So every heartbeat is
 * stored, in the order of time, and moves the last status.
 */
function luaOf(tokens: string[], batch: number) {
  const start = Math.floor(Date.now() / 1000) - 6 * 3600
  return `
local tokens = {${tokens.map(token => `"${token}"`).join(',')}}
local n = (tonumber(os.getenv("FIRST")) or 0)
local beat = '{"ts":"%s","battery_pct":%d,"network_type":"wifi","unity_running":true,"signal_dbm":-61,"agent_version":"3.1.0"}'
local items = {}
function request()
  local device = n % #tokens + 1
  local turn = math.floor(n / #tokens)
  n = n + 1
  for item = 1, ${batch} do
    items[item] = beat:format(os.date("!%Y-%m-%dT%H:%M:%SZ", ${start} + 10 * (turn * ${batch} + item)), (turn + item) % 101)
  end
  local body = ${batch === 1 ? 'items[1]' : '"[" .. table.concat(items, ",") .. "]"'}
  return wrk.format("POST", "/v1/heartbeat${batch === 1 ? '' : 's'}", {
    ["Authorization"] = "Bearer " .. tokens[device], ["Content-Type"] = "application/json"
  }, body)
end
`
}

async function measure(stand: Stand, { seconds, connections, batch }: { seconds: number; connections: number; batch: number }) {
  const server = await serverOf(stand)
  const before = await Promise.all([usageOf(server), usageOf(stand.postmaster)])
  const { requests, seconds: lasted } = await runWrk(stand.url, stand.script.file, { connections, seconds, first: stand.sent })
  const after = await Promise.all([usageOf(server), usageOf(stand.postmaster)])
  await requireStored(stand)
  // Those in flight at the end were sent, too.
  stand.sent += requests + connections
  const beats = requests * batch
  stand.rates.push(beats / lasted)
  stand.serverCpu.push(((after[0].cpuSeconds - before[0].cpuSeconds) * 1e6) / beats)
  stand.postgresCpu.push(((after[1].cpuSeconds - before[1].cpuSeconds) * 1e6) / beats)
}

/** A duplicate costs less than a heartbeat that is stored, so it would make a rate meaningless. */
async function requireStored({ name, url, adminKey }: Stand) {
  const metrics = await (await fetch(`${url}/metrics`, { headers: { 'x-admin': adminKey } })).text()
  for (const counter of ['hb_deduplicated_total', 'hb_quarantined_total']) {
    const total = Number(new RegExp(`^${counter} (\\S+)$`, 'm').exec(metrics)?.[1])
    if (total !== 0) throw new Error(`${name}: ${counter} is ${total}; every heartbeat has to be stored`)
  }
}

/** The process of the server: the child of npm start whose command line names it. */
async function serverOf({ child }: Stand) {
  for (const { pid } of await treeOf(child.pid!)) {
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (/\bserver\/main\.[jt]s\b/.test(command)) return pid
  }
  throw new Error('the server does not run')
}

async function stop(child: ChildProcess) {
  if (child.exitCode !== null) return
  const ended = new Promise(resolve => child.once('exit', resolve))
  process.kill(-child.pid!, 'SIGTERM')
  await ended
}
