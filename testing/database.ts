// Gives each test a database of its own, cloned from a migrated template, in the cluster that npm test makes.
import { execFile, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { chmod, cp, mkdtemp, readFile, realpath, rm, symlink, utimes } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { promisify } from 'node:util'
import postgres, { type Sql } from 'postgres'
import type { Test } from 'tap'
import { Cluster, ROLES, throwawayCluster, type Role } from '../local/cluster.ts'
import { plainEnv, testClusterFile } from '../local/config.ts'
import { built, nodeArgs, repository } from '../lib/repository.ts'
import { migrate } from '../cli/migrate.ts'
import { hasEnded } from '../lib/process.ts'
import { requirePostgres, type Postgres } from '../local/packages.ts'

const run = promisify(execFile)

/** The migrated database that withDatabase() copies. Nobody connects to it. */
export const TEMPLATE_DATABASE = 'fleet_template'
/** The same as a plain store in a run of npm run test:citus, where the template is a distributed one. */
export const PLAIN_DATABASE = 'fleet_plain'
/** The database that has pg_cron. It is migrated like the others, and shared by the tests that need jobs to run. */
const CRON_DATABASE = 'fleet'

/**
 * How long a test waits for what should happen at once, in ms: only so long that a fault does not stop the run. Beside other work
 * and at low priority, a program has needed more than 30 s to start.
 */
const PATIENCE_MS = 90_000

/** The codes of the errors that a session may get when its backend is ended: Postgres says so, or its end of the socket is gone. */
export const SESSION_ENDED = ['57P01', 'CONNECTION_CLOSED', 'ECONNRESET']

/** The description of the cluster that `npm test` gives to the test files. */
export interface TestCluster {
  host: string
  port: number
  postgres: Postgres
  passwords: Record<Role, string>
  /** A cluster with the migrated database `fleet`, to make others from; see ClusterOptions. '' if the stores are distributed. */
  template: string
  /** The ports of the workers, if the template is a distributed store; see npm run test:citus. */
  workers?: number[]
}

export interface TestDatabase {
  name: string
  /** A session as fleet_owner, which owns everything in schema fleet. */
  sql: Sql
  /** A session as superuser. */
  admin: Sql
  /** The URL with which a role logs in. */
  url: (role: Role) => string
}

/**
 * Makes a database for a test: a copy of the migrated template, or of template0 for an empty one. In teardown all its connections
 * are terminated, no matter who has them, and it is dropped.
 */
export async function withDatabase(
  t: Test,
  template: 'fleet_template' | 'fleet_plain' | 'template0' = TEMPLATE_DATABASE,
): Promise<TestDatabase> {
  const cluster = testCluster()
  const name = `test_${process.pid}_${counter++}`
  // A distributed store has a database of the same name on each node. An empty database is a plain one.
  const nodes = [cluster.port, ...(template === TEMPLATE_DATABASE ? (cluster.workers ?? []) : [])].map(port => ({
    ...cluster,
    port,
  }))
  await Promise.all(nodes.map(node => copyDatabase(node, template, name)))
  return open(
    t,
    name,
    role => testUrl(cluster, role, name),
    async () => {
      // The coordinator first: its sessions end then, and with them theirs on the workers.
      for (const node of nodes) await dropDatabase(node, name)
    },
  )
}

/** As withDatabase(), but a plain store in a run of npm run test:citus, too. */
export function withPlainDatabase(t: Test) {
  return withDatabase(t, testCluster().workers ? PLAIN_DATABASE : TEMPLATE_DATABASE)
}

/** The URLs with which a role logs in at each node: the coordinator and the workers of a distributed store, else the only one. */
export function urlsOfNodes(db: TestDatabase, role: Role) {
  return [db.url(role), ...(testCluster().workers ?? []).map(port => testUrl({ ...testCluster(), port }, role, db.name))]
}

async function copyDatabase(node: TestCluster, template: string, name: string) {
  const maintenance = client(testUrl(node, 'postgres', 'postgres'), 1)
  try {
    // Measured with 105 partitions and fsync off: 0.1 s with file_copy, 0.3 to 0.9 s with wal_log.
    await maintenance.unsafe(`create database ${name} template ${template} strategy file_copy`)
    // CREATE DATABASE does not copy the rights on the database and the settings made for it.
    await maintenance`
      with template as (select oid, datacl from pg_database where datname = ${template}),
      rights as (
        update pg_database set datacl = (select datacl from template) where datname = ${name} returning oid
      )
      insert into pg_db_role_setting (setdatabase, setrole, setconfig)
      select rights.oid, s.setrole, s.setconfig
      from rights, template
      join pg_db_role_setting s on s.setdatabase = template.oid
    `
  } finally {
    await maintenance.end({ timeout: 5 })
  }
}

async function dropDatabase(node: TestCluster, name: string) {
  const maintenance = client(testUrl(node, 'postgres', 'postgres'), 1)
  try {
    await maintenance.unsafe(`drop database if exists ${name} with (force)`)
  } finally {
    await maintenance.end({ timeout: 5 })
  }
}

/**
 * The database in which pg_cron really runs jobs. They run while the test runs, and other test files see what is done here, so
 * undo what would disturb them.
 */
export function withCronDatabase(t: Test): TestDatabase {
  const cluster = testCluster()
  requirePlain(cluster)
  return open(t, CRON_DATABASE, role => testUrl(cluster, role, CRON_DATABASE))
}

export interface OwnCluster extends TestDatabase {
  cluster: Cluster
}

/**
 * Makes a cluster for a test that kills or restarts Postgres, with one migrated database that has pg_cron. `durable` keeps fsync
 * and full page writes on. `isEmpty` leaves the database as Postgres makes it, without roles. `version` is another PostgreSQL than
 * that of the tests. Prefer withDatabase, which is quicker.
 */
export async function withCluster(
  t: Test,
  {
    isEmpty = false,
    version = testCluster().postgres,
    ...options
  }: { durable?: boolean; isEmpty?: boolean; connections?: number; version?: Postgres } = {},
): Promise<OwnCluster> {
  requirePlain(testCluster())
  const { postgres, template } = testCluster()
  const isCopied = !isEmpty && version.major === postgres.major
  const { cluster, end } = await throwawayCluster({
    postgres: version,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    ...(isCopied ? { template } : {}),
    ...options,
  })
  t.teardown(end)
  if (!isEmpty && !isCopied) {
    await migrate(cluster.url('postgres', 'fleet'), { current: true, log: () => {} })
    await cluster.allowLogins()
  }
  return { ...open(t, 'fleet', role => cluster.url(role, 'fleet')), cluster }
}

function requirePlain({ workers }: TestCluster) {
  if (workers) throw new Error('a test with a cluster of its own says nothing of a distributed store: skip it with plainOnly()')
}

/** Makes a streaming replica of a durable cluster with pg_basebackup. */
export async function withReplica(t: Test, primary: Cluster) {
  const { cluster, end } = await throwawayCluster({
    postgres: testCluster().postgres,
    databases: ['fleet'],
    cronDatabase: 'fleet',
    durable: true,
    primary,
  })
  t.teardown(end)
  return cluster
}

/** The owner of started programs, usually a test. They end when it does. */
export type Owner = Pick<Test, 'teardown'>

export interface TestProcess {
  pid: number
  /** Everything that it has printed so far, to both streams. */
  output: () => string
  /** Resolves when it has ended. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  /** Sends a signal and waits for the end; after `timeoutMs` it is killed and the wait fails. */
  stop: (signal?: NodeJS.Signals, timeoutMs?: number) => Promise<{ code: number | null; signal: NodeJS.Signals | null }>
}

export interface ProcessOptions {
  env?: Record<string, string | undefined>
  /** Wait until the output matches this, or until this URL answers 200. */
  ready?: RegExp | string
  /** How long to wait for that, in ms; PATIENCE_MS by default. */
  timeoutMs?: number
}

export interface ProgramOptions extends ProcessOptions {
  /** Its name in messages. */
  name?: string
  cwd?: string
  uid?: number
  gid?: number
}

/**
 * Runs a TypeScript file of this repository, such as server/main.ts, as a process with a plain environment plus `env`. It is
 * killed in teardown if it still runs.
 * @throws an Error with its output if it ends before it is ready
 */
export function spawnNode(t: Owner, script: string, { args = [], ...options }: ProcessOptions & { args?: string[] } = {}) {
  return spawnProgram(t, process.execPath, [...nodeArgs(script), ...args], { name: script, ...options })
}

/** As spawnNode, for any program. */
export async function spawnProgram(
  t: Owner,
  program: string,
  args: string[],
  options: ProgramOptions = {},
): Promise<TestProcess> {
  const { name = program, env = {}, ready, timeoutMs = PATIENCE_MS, ...rest } = options
  const child = spawn(program, args, {
    cwd: repository,
    ...rest,
    env: { ...plainEnv(), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString()
  })
  child.stderr.on('data', (chunk: Buffer) => {
    output += chunk.toString()
  })
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve({ code, signal }))
  })
  t.teardown(async () => {
    if (!hasEnded(child)) child.kill('SIGKILL')
    await exited
  })
  const stop = async (signal: NodeJS.Signals = 'SIGTERM', wait = 30_000) => {
    child.kill(signal)
    const timer = setTimeout(() => {
      output += `\n(killed because it still ran ${wait} ms after ${signal})`
      child.kill('SIGKILL')
    }, wait)
    const end = await exited
    clearTimeout(timer)
    if (end.signal === 'SIGKILL' && signal !== 'SIGKILL') throw new Error(`${name} did not end after ${signal}:\n${output}`)
    return end
  }
  if (ready) {
    const isReady =
      typeof ready === 'string'
        ? () =>
            fetch(ready).then(
              answer => answer.ok,
              () => false,
            )
        : async () => ready.test(output)
    await waitFor(
      async () => {
        if (hasEnded(child))
          throw new Error(`${name} ended with ${child.exitCode ?? child.signalCode ?? ''} before it was ready:\n${output}`)
        return isReady()
      },
      { timeoutMs, what: () => `${name} to be ready; it printed:\n${output}` },
    )
  }
  return { pid: child.pid ?? 0, output: () => output, exited, stop }
}

/** Makes a copy of the working tree without the files that npm start makes, like a clone. It shares node_modules. */
export async function withClone(t: Test) {
  const clone = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-clone-'))
  t.teardown(() => rm(clone, { recursive: true, force: true }))
  await chmod(clone, 0o755) // Postgres runs as another user and must enter it
  const left = new Set(['.git', '.local', '.tap', 'node_modules'])
  await cp(repository, clone, {
    recursive: true,
    verbatimSymlinks: true,
    filter: source => !left.has(relative(repository, source)),
  })
  await symlink(join(repository, 'node_modules'), join(clone, 'node_modules'))
  // Makes the file old, so that install.sh never replaces the packages under the running tests.
  await utimes(join(clone, 'package-lock.json'), 0, 0)
  // A clone contains committed work, so the migration that is being written is committed in it.
  const current = await readFile(join(clone, 'migrations/current.sql'), 'utf8').catch(() => '')
  if (/^\s*[^-\s]|^--!\s*include/m.test(current)) {
    await run(process.execPath, [built('cli/commit.ts', clone), 'commit', 'pending'], { cwd: clone, env: plainEnv() })
  }
  return clone
}

/**
 * Asks every `every` ms (50) until the answer is true.
 * @throws an Error after `timeoutMs` (PATIENCE_MS)
 */
export async function waitFor(
  condition: () => Promise<boolean>,
  {
    timeoutMs = PATIENCE_MS,
    every = 50,
    what = () => 'the condition',
  }: { timeoutMs?: number; every?: number; what?: () => string } = {},
) {
  const end = Date.now() + timeoutMs
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${timeoutMs} ms for ${what()}`)
    await new Promise(resolve => setTimeout(resolve, every))
  }
}

/** The cluster of this test run, for tests that look at the cluster itself. */
export function testCluster() {
  shared ??= JSON.parse(readFileSync(testClusterFile(), 'utf8')) as TestCluster
  return shared
}

let shared: TestCluster | undefined
let counter = 1

function testUrl({ host, port, passwords }: TestCluster, role: Role, database: string) {
  return `postgres://${role}:${passwords[role]}@${host}:${port}/${database}`
}

export function open(t: Test, name: string, url: (role: Role) => string, drop = async () => {}): TestDatabase {
  const sql = client(url('fleet_owner'), 10)
  const admin = client(url('postgres'), 10)
  t.teardown(async () => {
    await Promise.all([sql.end({ timeout: 1 }), admin.end({ timeout: 1 })])
    await drop()
  })
  return { name, sql, admin, url }
}

export function client(url: string, max: number) {
  return postgres(url, { max, onnotice: () => {} })
}

/** Makes the cluster of a test run. The test files get `description` from testCluster(). */
export async function makeTestCluster() {
  const packages = await requirePostgres()
  const { cluster, end } = await throwawayCluster({
    postgres: packages,
    databases: [CRON_DATABASE],
    cronDatabase: CRON_DATABASE,
  })
  try {
    const log = () => {}
    await migrate(cluster.url('postgres', CRON_DATABASE), { current: true, log })
    await cluster.allowLogins()
    const template = join(cluster.dir, 'template')
    await cluster.saveTemplate(template)
    const sql = client(cluster.url('postgres', 'postgres'), 1)
    await sql.unsafe(`create database ${TEMPLATE_DATABASE} template template0`)
    await migrate(cluster.url('postgres', TEMPLATE_DATABASE), { current: true, log })
    // Test files run in parallel and together need more sessions than the limits allow.
    for (const role of ['fleet_reader', 'fleet_dba', 'fleet_archiver'])
      await sql.unsafe(`alter role ${role} connection limit 100`)
    // Not even autovacuum may connect: a copy waits until nobody is connected.
    await sql.unsafe(`alter database ${TEMPLATE_DATABASE} with allow_connections false is_template true`)
    await sql.end({ timeout: 5 })
    const passwords = Object.fromEntries(
      (['postgres', ...ROLES] as const).map(role => [role, new URL(cluster.url(role, CRON_DATABASE)).password]),
    ) as Record<Role, string>
    const description: TestCluster = { host: '127.0.0.1', port: cluster.port, postgres: packages, passwords, template }
    return { cluster, description, end }
  } catch (error) {
    await end()
    throw error
  }
}
