// The kinds of faults in a drill. Each fault is over when its function ends.
import { readFile } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import type { Fate } from '../s3-proxy.ts'
import { SESSION_ENDED, waitFor } from '../database.ts'
import type { Answer } from '../webhooks.ts'
import { treeOf } from '../../bench/processes.ts'
import { dumpAndRestore, promoteStandby } from './moves.ts'
import { ignore, type Archiver, type System } from './system.ts'

export interface Fault {
  kind: string
  /** Why it cannot be made here; undefined if it can. */
  without?: (system: System) => string | undefined
  /** Makes the fault and returns a few words about it. */
  strike: (system: System, random: () => number) => Promise<string>
  /** The most ms that 99 % of the heartbeats may wait that were due during the fault and accepted. */
  p99?: number
}

type Random = () => number

export const between = (random: Random, least: number, most: number) => least + Math.floor(random() * (most - least + 1))
export const oneOf = <T>(random: Random, values: readonly T[]) => values[Math.floor(random() * values.length)]!
const withoutS3 = ({ places }: System) =>
  places.includes('s3') ? undefined : 'there is no S3 store (--no-s3, or not installed: radosgw ceph-mon ceph-osd ceph-common)'
const withoutClock = ({ clocks }: System) => (clocks.server ? undefined : 'faketime is not installed')
const withoutDisk = ({ disks }: System) =>
  disks.work && disks.files ? undefined : 'only root may mount the small disks that are filled'

export const faults: Fault[] = [
  { kind: 'worker of the server killed (SIGKILL)', strike: killWorker },
  { kind: 'server killed (SIGKILL) and restarted', strike: killServer },
  { kind: 'archiver killed (SIGKILL)', strike: killArchiver },
  { kind: 'notifier killed (SIGKILL)', strike: killNotifier },
  { kind: 'receiver of webhooks fails', strike: (system, random) => sickenReceiver(system, random, FAILING) },
  { kind: 'receiver of webhooks lies', strike: (system, random) => sickenReceiver(system, random, LYING) },
  { kind: 'Postgres killed (SIGKILL) and restarted', strike: killPostgres },
  { kind: 'backend of Postgres killed (SIGKILL)', strike: killBackend },
  { kind: 'backends terminated during a statement', strike: endStatements },
  { kind: 'database stopped and resumed, repeatedly', strike: stopDatabase, p99: 1_000 },
  { kind: "archiver's work disk full", without: withoutDisk, strike: (system, random) => fillDisk(system, random, 'work') },
  { kind: "file store's disk full", without: withoutDisk, strike: (system, random) => fillDisk(system, random, 'files') },
  { kind: 'S3 down', without: withoutS3, strike: (system, random) => sicken(system, random, ['refuse', 'cut']) },
  { kind: 'S3 slow', without: withoutS3, strike: (system, random) => sicken(system, random, ['slow']) },
  {
    kind: 'S3 answers wrongly',
    without: withoutS3,
    strike: (system, random) => sicken(system, random, ['lose', 'break', 'flip', 'swallow', 'garble']),
  },
  { kind: 'clock of the server jumps', without: withoutClock, strike: (system, random) => jump(system, random, 'server') },
  { kind: 'clock of the archivers jumps', without: withoutClock, strike: (system, random) => jump(system, random, 'archivers') },
  { kind: 'clock of Postgres runs ahead', without: withoutClock, strike: runAhead },
  { kind: 'flood of connections', strike: storm },
  { kind: 'several archivers', strike: crowd },
  { kind: 'two nightly runs at the same time', strike: twoNights },
  { kind: 'nightly run during a restore', strike: nightDuringRestore },
  { kind: 'session that settles a day terminated', strike: endSettling },
  { kind: 'field added', strike: addField },
  { kind: 'standby promoted', strike: promoteStandby },
  { kind: 'dump and restore', strike: dumpAndRestore },
]

async function killWorker({ server }: System, random: Random) {
  const workers: number[] = []
  for (const { pid } of await treeOf(server.pid)) {
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    if (pid !== server.pid && command.includes('server/main.js')) workers.push(pid)
  }
  if (workers.length === 0) throw new Error('the server has no worker')
  const victim = oneOf(random, workers)
  process.kill(victim, 'SIGKILL')
  return 'a worker'
}

async function killServer(system: System) {
  const { server } = system
  server.kill('SIGKILL')
  await server.exited
  // Its workers finish their work. The port is free at once.
  system.server = await system.startServer(server.port)
  return 'the main process, and with it the workers'
}

async function killArchiver(system: System, random: Random) {
  await system.addWork(3, random)
  await sleep(between(random, 0, 900))
  const victim = oneOf(random, system.archivers)
  victim.program.kill('SIGKILL')
  await victim.program.exited
  await replace(system, victim)
  return `the one that stores to ${victim.place}`
}

async function killNotifier({ told }: System, random: Random) {
  await sleep(between(random, 0, 600))
  const victim = oneOf(random, told.notifiers)
  victim.kill('SIGKILL')
  await victim.exited
  told.notifiers.splice(told.notifiers.indexOf(victim), 1)
  await told.startNotifier()
  return 'one of two'
}

const FAILING: [string, Answer][] = [
  ['answers 500', 500],
  ['does not answer', () => {}],
  ['closes the connection', response => response.destroy()],
  ['closes it half-way', response => response.writeHead(200, { 'content-length': '10' }).write('half', () => response.destroy())],
  ['answers late', response => setTimeout(() => response.writeHead(204).end(), 1_000)],
  ['sends it elsewhere', response => response.writeHead(302, { location: 'http://127.0.0.1:9/' }).end()],
]

/** It has kept the message, but says something else. */
const LYING: [string, Answer][] = [
  ['says that it is overloaded, for a year', response => response.writeHead(429, { 'retry-after': '31536000' }).end()],
  [
    'says that it is overloaded, until a day that was',
    response => response.writeHead(503, { 'retry-after': 'Thu, 01 Jan 1970 00:00:00 GMT' }).end(),
  ],
  ['says that the message is wrong', response => response.writeHead(400).end('{"error":"unknown event"}')],
  ['says that it never wants one again', response => response.writeHead(410).end()],
  ['says what is not HTTP', response => response.socket?.end('SSH-2.0-OpenSSH_9.2\r\n')],
  [
    'never comes to the end of its answer',
    response => {
      response.writeHead(500)
      const saying = setInterval(() => response.write('x'.repeat(1_000)), 50)
      response.once('close', () => clearInterval(saying))
    },
  ],
]

async function sickenReceiver({ told }: System, random: Random, kinds: [string, Answer][]) {
  const [name, answer] = oneOf(random, kinds)
  const { receiver } = told
  const before = receiver.answer
  receiver.answer = answer
  try {
    await sleep(between(random, 500, 2_500))
  } finally {
    receiver.answer = before
  }
  return name
}

async function replace(system: System, dead: Archiver) {
  system.archivers.splice(system.archivers.indexOf(dead), 1)
  await system.freeLeases(dead)
  await system.startArchiver(dead.place)
}

async function killPostgres({ store }: System, random: Random) {
  await sleep(between(random, 0, 300))
  process.kill(await postmaster(store), 'SIGKILL')
  await sleep(between(random, 50, 500))
  await store.cluster.start()
  return 'the postmaster'
}

async function killBackend(system: System, random: Random) {
  const [row] = await system.ask(
    sql => sql<{ pid: number }[]>`
    select pid from pg_stat_activity where usename in ('fleet_server', 'fleet_archiver') order by (pid * ${between(random, 1, 9_999)}::bigint) % 9973 limit 1
  `,
  )
  if (!row) throw new Error('nobody is connected')
  process.kill(row.pid, 'SIGKILL')
  await waitFor(() =>
    system
      .ask(sql => sql`select pg_is_in_recovery()`)
      .then(
        () => true,
        () => false,
      ),
  )
  return 'one, so Postgres ended all of them and recovered'
}

/** Runs inside Postgres, where it is fast enough to find a statement that takes a millisecond. */
async function endStatements(system: System, random: Random) {
  await system.addWork(1, random)
  const wanted = between(random, 1, 6)
  const [row] = await system.ask(async sql => {
    await sql.unsafe(`
      create or replace function pg_temp.end_statements(p_wanted integer) returns integer language plpgsql as $$
      declare
        v_ended integer := 0;
        v_until timestamptz := clock_timestamp() + interval '1500 milliseconds';
      begin
        while v_ended < p_wanted and clock_timestamp() < v_until loop
          perform pg_stat_clear_snapshot();
          v_ended := v_ended + (
            select count(*) filter (where pg_terminate_backend(a.pid))
            from pg_stat_activity a
            where a.state = 'active' and a.usename in ('fleet_server', 'fleet_archiver')
              and a.query_start < clock_timestamp() and a.pid <> pg_backend_pid()
          );
        end loop;
        return v_ended;
      end $$`)
    return sql<{ ended: number }[]>`select pg_temp.end_statements(${wanted}) as ended`
  })
  if (!row?.ended) throw new Error('no statement ran within 1.5 s')
  return `${row.ended} of them`
}

async function stopDatabase({ store }: System, random: Random) {
  const until = performance.now() + between(random, 900, 2_000)
  const root = await postmaster(store)
  let stopped = 0
  while (performance.now() < until) {
    const pause = between(random, 50, 600)
    stopped += pause
    await paused(root, pause)
    await sleep(between(random, 50, 200))
  }
  return `${stopped} ms in total`
}

/** Stops a process and all its descendants for `ms`. */
export async function paused(root: number, ms: number) {
  const pids = (await treeOf(root)).map(({ pid }) => pid)
  const send = (signal: NodeJS.Signals) => {
    for (const pid of pids) {
      try {
        process.kill(pid, signal)
      } catch {
        // It has ended in the meantime.
      }
    }
  }
  try {
    send('SIGSTOP')
    await sleep(ms)
  } finally {
    send('SIGCONT')
  }
}

async function fillDisk(system: System, random: Random, which: 'work' | 'files') {
  const disk = system.disks[which]!
  // An export needs about this much, so it fails at the beginning, in the middle, or when the manifest is written.
  const kilobytes = oneOf(random, [0, 4, 8])
  await disk.fill(kilobytes * 1024)
  try {
    await system.alone(which === 'files' ? 'file' : undefined, async () => {
      await system.addWork(3, random)
      await sleep(between(random, 400, 1_200))
    })
  } finally {
    await disk.empty()
  }
  return `${kilobytes} KB left`
}

async function sicken(system: System, random: Random, fates: Fate[]) {
  const chosen = fates.filter(() => random() < 0.7)
  const sick = chosen.length > 0 ? chosen : fates
  // Some requests pass, so that the archiver reaches all its steps.
  const passing = random() * 0.7
  let asked = 0
  let met = 0
  system.fate = () => {
    asked++
    if (random() < passing) return 'pass'
    met++
    return oneOf(random, sick)
  }
  try {
    await system.alone('s3', async () => {
      await system.addWork(3, random)
      await sleep(between(random, 500, 1_500))
    })
  } finally {
    system.fate = () => 'pass'
  }
  return `${sick.join(', ')} for ${met} of ${asked} requests`
}

async function jump(system: System, random: Random, whose: 'server' | 'archivers') {
  const clock = system.clocks[whose]!
  const seconds = oneOf(random, [1, -1]) * oneOf(random, [30, 3_600, 86_400, 40 * 86_400])
  const pause = between(random, 0, 800)
  await clock.jump(seconds)
  try {
    await sleep(1_000)
    if (whose === 'archivers') await system.addWork(2, random)
    const isOff = (time: string | null) => Math.abs(Date.parse(time ?? '') - Date.now() - 1_000 * seconds) < 15_000
    let since = performance.now()
    // The jump shows in the server's answers or in the archivers' log.
    await waitFor(
      async () => {
        if (whose === 'server') return isOff((await fetch(`${system.server.url}/healthz`)).headers.get('date'))
        // An archiver that lost Postgres may not listen until its next sweep, after a minute. One that has nothing to do logs
        // nothing.
        await system.hurry()
        if (performance.now() > since + 5_000) {
          since = performance.now()
          await system.addWork(1, random)
        }
        return system.archivers.some(({ program }) =>
          [...program.output().matchAll(/"time":"([^"]+)"/g)].some(([, time]) => isOff(time!)),
        )
      },
      {
        timeoutMs: 90_000,
        what: () =>
          `the clock of the ${whose} to be ${seconds} s off; the archivers printed:\n${system.archivers.map(({ program }) => program.output()).join('\n')}`,
      },
    )
    await sleep(pause)
  } finally {
    await clock.jump(0)
  }
  return `by ${seconds} s and back`
}

/**
 * For some seconds the time of Postgres is later. Its jobs run in that time, too. A message that is queued then for a time that is
 * up to ten minutes away waits for it (fleet.remind_webhooks()), which is longer than a drill waits.
 */
async function runAhead(system: System, random: Random) {
  const clock = system.clocks.postgres!
  const seconds = oneOf(random, [30, 90, 3_600, 10_800, 86_400])
  const aheadBy = () =>
    system.ask(async sql => {
      const [row] = await sql<{ now: number }[]>`select extract(epoch from clock_timestamp())::float8 as now`
      return row!.now - Date.now() / 1_000
    })
  await clock.jump(seconds)
  try {
    await waitFor(async () => (await aheadBy()) > seconds - 5, { what: () => 'the clock of Postgres to be ahead' })
    await system.addWork(2, random)
    await sleep(between(random, 0, 2_000))
  } finally {
    await clock.jump(0)
  }
  await waitFor(async () => Math.abs(await aheadBy()) < 5, { what: () => 'the clock of Postgres to be right again' })
  // Without this pg_cron would wait until that time.
  const [scheduler] = await system.ask(
    sql => sql<{ remedy: string | null }[]>`
    select remedy from fleet.check_scheduler() where check_name = 'scheduler'`,
  )
  if (scheduler?.remedy?.includes('pg_ctl restart')) {
    await system.store.cluster.stop()
    await system.store.cluster.start()
  }
  return `by ${seconds} s and back${scheduler?.remedy ? ', and Postgres restarted, as check() said' : ''}`
}

/** Opens more connections than Postgres accepts, and a thousand to the server, half of which send half a request. */
async function storm(system: System, random: Random) {
  const { port } = system.server
  const sockets: Socket[] = []
  const url = system.store.cluster.url('fleet_reader', 'fleet')
  const sessions = Array.from({ length: 230 }, () =>
    postgres(url, { max: 1, fetch_types: false, onnotice: () => {}, connect_timeout: 5 }),
  )
  let refused = 0
  try {
    for (let n = 0; n < 1_000; n++) {
      const socket = connect(port, '127.0.0.1')
      socket.on('error', () => {})
      if (n % 2) socket.write('POST /v1/heartbeat HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{')
      sockets.push(socket)
    }
    await Promise.all(
      sessions.map(sql =>
        sql`select 1`.catch(() => {
          refused++
        }),
      ),
    )
    await sleep(between(random, 0, 500))
  } finally {
    for (const socket of sockets) socket.destroy()
    await Promise.all(sessions.map(sql => sql.end({ timeout: 0 })))
  }
  return `1,000 to the server, 230 to Postgres, ${refused} refused`
}

async function crowd(system: System, random: Random) {
  const extra = await system.startArchiver(oneOf(random, system.places), true)
  await system.addWork(5, random)
  await waitFor(async () => extra.program.hasEnded() || extra.program.output().includes('archiver.ready'))
  await sleep(between(random, 0, 800))
  const ends = random() < 0.5 ? 'stopped' : 'killed'
  if (ends === 'stopped') {
    await extra.program.stop()
  } else {
    extra.program.kill('SIGKILL')
    await extra.program.exited
    await system.freeLeases(extra)
  }
  return `one more, then ${ends}`
}

/** A nightly run that retires some days. It may be refused because another run or session holds a lock. */
function night(system: System, random: Random, ...ends: string[]) {
  const retention = `${between(random, 60, 89)} days`
  return system
    .ask(sql => sql`call fleet.nightly(null, ${retention}::interval)`, 'fleet_owner')
    .then(
      () => 'ran',
      (error: unknown) => {
        ignore('FL003', '55P03', '40P01', ...ends)(error)
        return 'was refused'
      },
    )
}

async function twoNights(system: System, random: Random) {
  const ends = await Promise.all([night(system, random), night(system, random)])
  return `one ${ends[0]}, one ${ends[1]}`
}

async function nightDuringRestore(system: System, random: Random) {
  const asked = await system.ask(async sql => {
    const days = await sql<{ day: string }[]>`
      select (range_start at time zone 'UTC')::date::text as day from fleet.hb_partitions where state = 'dropped' order by range_start
    `
    const some = days.filter(() => random() < 3 / days.length)
    for (const { day } of some) await sql`select fleet.request_restore(${day}::date)`.catch(ignore('FL404'))
    return some.length
  })
  if (asked === 0) await system.addWork(3, random)
  await sleep(between(random, 0, 500))
  const end = await night(system, random)
  return `a restore of ${asked} days was requested; the nightly run ${end}`
}

/** Ends the session of a nightly run while it settles a day. */
async function endSettling(system: System, random: Random) {
  await system.addWork(2, random)
  const wait = between(random, 0, 400)
  const [ended, said] = await Promise.all([
    system.ask(async sql => {
      await sleep(wait)
      const [row] = await sql<{ ended: number }[]>`
        select count(*) filter (where pg_terminate_backend(a.pid))::integer as ended
        from pg_stat_activity a where a.query like 'call fleet.nightly%' and a.usename = 'fleet_owner'`
      return row!.ended
    }),
    night(system, random, ...SESSION_ENDED),
  ])
  return `after ${wait} ms: ${ended === 0 ? `it ${said}` : 'it ended'}`
}

let fields = 0

/** A field is added as a migration of its own adds it, while days with and without it are archived and restored. */
async function addField(system: System, random: Random) {
  await system.addWork(3, random)
  const types = ['integer', 'bigint', 'boolean', 'text', 'jsonb', 'smallint']
  const name = `drilled_${++fields}`
  const type = oneOf(random, types)
  // It gives up if others keep the table busy for two seconds.
  const isAdded = await system
    .ask(sql => sql`select fleet.add_field(${name}, ${type}::regtype, 'Added by a drill.')`, 'fleet_owner')
    .then(() => true, ignore('FL003'))
  await system.addWork(3, random)
  return isAdded ? `${name} ${type}` : `${name}: the heartbeats were in use`
}

async function postmaster(store: System['store']) {
  const pid = await store.cluster.pid()
  if (pid === undefined) throw new Error('Postgres is not running')
  return pid
}
