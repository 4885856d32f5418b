// Runs a whole system under load for the drills: a durable cluster, a server with workers, archivers, and the benchmark's sender.
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import postgres, { type Sql } from 'postgres'
import { startProxy, type Fate } from '../s3-proxy.ts'
import { makeClock, type Clock } from '../clock.ts'
import { objectStore, startObjectStore } from '../object-store.ts'
import { step } from '../../lib/progress.ts'
import { waitFor } from '../database.ts'
import { startSender, type Sender } from '../../bench/heartbeats.ts'
import { schedule } from '../../bench/schedule.ts'
import type { Acknowledged } from '../../bench/sender.ts'
import { enroll, startProgram, startServer, type Device, type Program, type Server, type Store } from '../../bench/store.ts'
import { makeDisk, type Disk } from './disk.ts'
import { Told } from './told.ts'
import { rowsOf, type Rows } from '../rows.ts'

export interface Archiver {
  program: Program
  place: Place
  /** The application_name of its sessions. */
  name: string
}

/** The kind of store to which an archiver writes. */
export type Place = 'file' | 's3'

/** Devices that fall silent and come back. */
const SILENT = 40

interface Options {
  devices: number
  /** Seconds between the heartbeats of a device. */
  interval: number
  /** Whether there is an S3 store. */
  s3: boolean
  /** The clock of Postgres. */
  clock: Clock | undefined
}

/** The system. Each archiver writes to its own store; all work on the same partitions. */
export class System {
  readonly store: Store
  readonly devices: Device[]
  readonly directory: string
  readonly archivers: Archiver[] = []
  /** The rows that each past day must have, by partition. */
  readonly written = new Map<string, Rows>()
  /** Decides the fate of a request to the S3 store. */
  fate: (number: number) => Fate = () => 'pass'
  server!: Server
  sender!: Sender
  told!: Told
  clocks: { server?: Clock | undefined; archivers?: Clock | undefined; postgres?: Clock | undefined } = {}
  /** The disks on which archivers work and store files. */
  disks: { work?: Disk | undefined; files?: Disk | undefined } = {}
  #env: Record<Place, Record<string, string> | undefined> = { file: undefined, s3: undefined }
  #endings: (() => unknown)[] = []
  #sending: Promise<unknown> = Promise.resolve()
  #isOver = false
  #started = 0

  private constructor(store: Store, devices: Device[], directory: string) {
    this.store = store
    this.devices = devices
    this.directory = directory
  }

  static async start(store: Store, options: Options) {
    const directory = await mkdtemp(join(tmpdir(), 'fleet-drills-'))
    const system = new System(store, await enroll(store, options.devices), directory)
    system.#endings.push(() => rm(directory, { recursive: true, force: true }))
    try {
      await system.#start(options)
      return system
    } catch (error) {
      await system.end()
      throw error
    }
  }

  async #start({ interval, s3, clock }: Options) {
    const { directory } = this
    this.clocks = {
      server: await makeClock(directory, 'server'),
      archivers: await makeClock(directory, 'archivers'),
      postgres: clock,
    }
    for (const name of ['work', 'files'] as const) {
      const disk = await makeDisk(join(directory, name), 256)
      this.disks[name] = disk
      if (disk) this.#endings.unshift(disk.end)
    }
    this.#env.file = { ARCHIVE_URL: pathToFileURL(join(directory, 'files/archive')).href }
    if (s3 && objectStore.isHere()) this.#env.s3 = await step('Starting an S3 store', () => this.#startStore())
    await step('Starting server and archivers', async () => {
      this.server = await this.startServer()
      this.#endings.unshift(() => this.server.stop())
      await Promise.all(this.places.map(place => this.startArchiver(place)))
      this.#endings.unshift(() => Promise.all(this.archivers.map(({ program }) => program.stop())))
    })
    // Before the heartbeats begin, because the first of them are the busiest.
    this.told = await step('Starting notifiers and a receiver', async () =>
      Told.start(
        this,
        { teardown: ending => this.#endings.unshift(ending as () => unknown) },
        await enroll(this.store, SILENT, 'silent'),
        this.store.cluster.url('fleet_notifier', 'fleet'),
      ),
    )
    await this.told.rise(this.told.devices)
    this.sender = startSender()
    this.#endings.unshift(() => this.sender.end())
    await this.sender.connect(this.server.port, Math.min(this.devices.length, 600), this.devices)
    this.#sending = this.#send(interval)
  }

  async #startStore() {
    const store = await startObjectStore()
    this.#endings.unshift(() => store.end())
    const credentials = { AWS_ACCESS_KEY_ID: store.accessKey, AWS_SECRET_ACCESS_KEY: store.secretKey, AWS_REGION: 'us-east-1' }
    const client = new S3Client({
      endpoint: store.endpoint,
      forcePathStyle: true,
      region: 'us-east-1',
      credentials: { accessKeyId: store.accessKey, secretAccessKey: store.secretKey },
    })
    const Bucket = `fleet-drills-${randomBytes(4).toString('hex')}`
    await client.send(new CreateBucketCommand({ Bucket }))
    client.destroy()
    const proxy = await startProxy(store.endpoint, number => this.fate(number))
    this.#endings.unshift(proxy.end)
    return { ARCHIVE_URL: `s3://${Bucket}/archive`, AWS_ENDPOINT_URL_S3: proxy.endpoint, ...credentials }
  }

  /** Sends heartbeats until end(), some of them twice, no matter how often the server is down. */
  async #send(interval: number) {
    const fleet = schedule({ devices: this.devices.length, interval, jitter: interval - 10, retries: 5, duration: 120 })
    while (!this.#isOver) await this.sender.open(fleet, 0, () => {}, true)
  }

  get places() {
    return (['file', 's3'] as const).filter(place => this.#env[place])
  }

  async startServer(port?: number) {
    const server = await startServer(this.store, {
      env: { WORKERS: '2', ...this.clocks.server?.env },
      ...(port === undefined ? {} : { port }),
    })
    void server.exited.then(() => this.clocks.server?.forget(server.pid))
    return server
  }

  /** The settings of a program that writes or reads archives. */
  archiverEnv(place: Place) {
    // The settings of the S3 store are always included, because a restore reads its archives too.
    return {
      ...this.#env.s3,
      ...this.#env[place],
      ARCHIVER_DATABASE_URL: this.store.cluster.url('fleet_archiver', 'fleet'),
      TMPDIR: join(this.directory, 'work'),
    }
  }

  /**
   * Starts an archiver that runs until it is stopped. Unless `isExtra`, this waits until it is ready and adds it to `archivers`.
   * An extra one that finds no Postgres at the start simply ends.
   */
  async startArchiver(place: Place, isExtra = false) {
    await mkdir(join(this.directory, 'work'), { recursive: true })
    const name = `drilled archiver ${++this.#started}`
    const url = new URL(this.store.cluster.url('fleet_archiver', 'fleet'))
    url.searchParams.set('application_name', name)
    const program = startProgram('archiver/main.ts', {
      env: { ...this.archiverEnv(place), ...this.clocks.archivers?.env, ARCHIVER_DATABASE_URL: url.href },
    })
    void program.exited.then(() => this.clocks.archivers?.forget(program.pid))
    const archiver = { program, place, name }
    if (!isExtra) {
      this.archivers.push(archiver)
      await waitFor(async () => program.hasEnded() || program.output().includes('archiver.ready'), {
        timeoutMs: 30_000,
        what: () => `${name} to become ready`,
      })
      this.mustLive()
    }
    return archiver
  }

  /** @throws an Error with an archiver's output if one ended by itself */
  mustLive() {
    const dead = this.archivers.find(({ program }) => program.hasEnded())
    if (dead) throw new Error(`${dead.name} ended by itself:\n${dead.program.output()}`)
    this.told?.mustLive()
  }

  archiver(place: Place) {
    const found = this.archivers.find(archiver => archiver.place === place)
    if (!found) throw new Error(`no archiver writes to ${place}`)
    return found
  }

  /** Uses a new connection each time, because a client's connections do not always survive a crash. */
  async ask<T>(use: (sql: Sql) => Promise<T>, role: 'postgres' | 'fleet_owner' = 'postgres') {
    // Fetching types at login is off, because nobody catches it if that query fails.
    const sql = postgres(this.store.cluster.url(role, 'fleet'), {
      max: 1,
      fetch_types: false,
      onnotice: () => {},
      connect_timeout: 5,
    })
    try {
      return await use(sql)
    } finally {
      await sql.end({ timeout: 1 })
    }
  }

  /** Returns the answers since the last call. Each is returned only once. */
  async acknowledged(): Promise<(Acknowledged & { device_id: number })[]> {
    const beats = await this.sender.acknowledged()
    return beats.map(beat => ({ ...beat, device_id: this.devices[beat.template]!.device_id }))
  }

  /**
   * Gives the archivers days to work on: fills past days, retires them, and requests restores of archived ones, as `random`
   * decides. The content that each day then must have is recorded.
   * @returns the number of days
   */
  async addWork(count: number, random: () => number) {
    return this.ask(async sql => {
      let given = 0
      const days = await sql<{ partition_name: string; state: string; day: string }[]>`
        select partition_name, state, (range_start at time zone 'UTC')::date::text as day
        from fleet.hb_partitions
        where range_end < now() - interval '9 days' and state in ('active', 'restored', 'dropped')
        order by range_start
      `
      for (let added = 0; added < count && days.length > 0; added++) {
        const [day] = days.splice(Math.floor(random() * days.length), 1)
        if (day!.state === 'dropped') {
          // An earlier request may have restored it in the meantime.
          await sql`select fleet.request_restore(${day!.day}::date)`.then(() => {
            given++
          }, ignore('FL404'))
          continue
        }
        const rows = 200 + Math.floor(random() * 4_000)
        // A night may settle it again before the insert. Then another day will do.
        const isOpen = await sql`select fleet.unsettle_partition(${day!.partition_name})`.then(() => true, ignore('FL003'))
        if (isOpen === undefined) continue
        const isWritten = await sql`
          insert into fleet.device_heartbeats (ts, received_at, device_id, battery_pct, unity_running, network_type, agent_version, ip)
          select t.ts, t.ts, n % 50, n % 101, n % 7 > 0, (array['wifi', 'lte', null])[1 + n % 3], '1.2.' || n % 5, '10.0.0.0'::inet + n % 200
          from generate_series(1, ${rows}::integer) n
          cross join lateral (
            select ${day!.day}::date::timestamp at time zone 'UTC' + ${random()}::float8 * interval '12 hours' + n / 50 * interval '1 minute' as ts
          ) t
          on conflict do nothing
        `.then(() => true, ignore('23514'))
        if (isWritten === undefined) continue
        this.written.set(day!.partition_name, await rowsOf(sql, `fleet.${day!.partition_name}`))
        if (day!.state === 'restored') await sql`select fleet.release_partition(${day!.partition_name})`
        // It waits at most 300 ms for readers of the day. If that fails, another day will do.
        await sql`select fleet.archive_partition(${day!.partition_name})`.then(() => {
          given++
        }, ignore('55P03'))
      }
      return given
    })
  }

  /** Stops the archivers of other places during `work`, so that this one gets the work. */
  async alone(place: Place | undefined, work: () => Promise<void>) {
    const others = this.archivers.filter(archiver => place !== undefined && archiver.place !== place)
    for (const { program } of others) program.kill('SIGSTOP')
    try {
      await work()
    } finally {
      for (const { program } of others) program.kill('SIGCONT')
    }
  }

  /**
   * Frees the leases of a dead archiver at once, instead of after five minutes, and ends its sessions. Without an archiver, it
   * frees all leases.
   */
  async freeLeases(dead?: Archiver) {
    await this.ask(async sql => {
      if (dead) await sql`select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = ${dead.name}`
      const owner = dead ? `%:${dead.program.pid}:%` : '%'
      await sql`update fleet.hb_partitions set lease_until = now() - interval '1 second' where lease_owner like ${owner} and lease_until is not null`
      await sql`update fleet.restore_items set lease_until = now() - interval '1 second' where lease_owner like ${owner} and state = 'running'`
    })
  }

  /** Makes failed archives due now instead of in some minutes, and wakes the archivers that wait. */
  async hurry() {
    await this.ask(async sql => {
      await sql`update fleet.hb_partitions set attempts = 0, next_attempt_at = now() where state = 'archive_failed'`
      await sql`select fleet.wake_archiver()`
    })
  }

  async end() {
    this.#isOver = true
    if (this.sender) {
      this.sender.stop()
      await Promise.race([this.#sending.catch(() => {}), sleep(20_000, undefined, { ref: false })])
    }
    for (const ending of this.#endings.splice(0)) {
      try {
        await ending()
      } catch {
        // The others are still ended.
      }
    }
  }
}

export function ignore(...codes: string[]) {
  return (error: unknown) => {
    if (!(error instanceof Error && 'code' in error && codes.includes(error.code as string))) throw error
  }
}
