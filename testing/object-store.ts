// Runs a real S3 store for tests: Ceph's gateway (RGW) over one monitor and one OSD, which keeps everything in memory.
import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs'
import { chown, mkdir, mkdtemp, realpath, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { freePort } from '../local/cluster.ts'
import { plainEnv } from '../local/config.ts'
import { hasPrograms, testPrograms } from './optional-programs.ts'

const run = promisify(execFile)

/** The id of the only key that the store has for SSE-KMS. */
export const KMS_KEY = 'fleet-key'

/** Ubuntu's packages have the same names. */
export const objectStore = testPrograms('S3 store', ['radosgw', 'ceph-mon', 'ceph-osd', 'ceph-common'], () =>
  hasPrograms('radosgw', 'radosgw-admin', 'ceph-mon', 'ceph-osd', 'ceph', 'monmaptool'),
)

export interface ObjectStore {
  endpoint: string
  accessKey: string
  secretKey: string
  /** Runs radosgw-admin, for users, their rights and quotas. It prints JSON. */
  admin: (...args: string[]) => Promise<string>
  /** Ends its processes and removes its directory. This also happens when this process ends, no matter how. */
  end: () => Promise<void>
}

/** Starts a store on loopback, in a temporary directory. Takes about 10 s and 150 MB. */
export async function startObjectStore(): Promise<ObjectStore> {
  if (!objectStore.isHere())
    throw new Error(
      `the S3 store for the tests is not installed; install it with: apt-get install -y ${objectStore.packages.join(' ')}`,
    )
  for (let tried = 1; ; tried++) {
    try {
      return await start()
    } catch (error) {
      // Another process may take the port after we looked and before the daemon binds it.
      if (tried === 3 || !(error instanceof Error && /address already in use|unable to bind/i.test(error.message))) throw error
    }
  }
}

async function start(): Promise<ObjectStore> {
  const user = storeUser()
  const dir = await mkdtemp(join(await realpath(tmpdir()), 'nexmdm-s3-'))
  const guard = spawn('sh', ['-c', GUARD_SCRIPT, 'guard', dir], { detached: true, stdio: ['pipe', 'ignore', 'ignore'], cwd: '/' })
  guard.unref()
  const guardEnd = new Promise<void>(resolve => {
    guard.once('exit', () => resolve())
  })
  const end = async () => {
    guard.ref()
    guard.stdin.end()
    await guardEnd
  }
  try {
    const port = await freePort(true)
    const monitor = await freePort(true)
    const conf = join(dir, 'ceph.conf')
    for (const made of [dir, ...['mon', 'osd', 'rgw', 'run'].map(name => join(dir, name))]) {
      await mkdir(made, { recursive: true })
      if (user) await chown(made, user.uid, user.gid)
    }
    // Debian 13's OSD looks for its classes in lib/… below its working directory, which is usually the root.
    await symlink('/usr/lib', join(dir, 'lib'))
    const fsid = randomUUID()
    await writeFile(conf, configuration(dir, fsid, monitor, port))

    const options = { ...user, cwd: dir, env: plainEnv() }
    const tool = async (program: string, ...args: string[]) => (await run(program, args, { ...options, timeout: 120_000 })).stdout
    const daemon = async (program: string, name: string, ...args: string[]) => {
      const out = openSync(join(dir, `${name}.out`), 'a')
      const child = spawn(program, ['-f', '-c', conf, ...args], { ...options, detached: true, stdio: ['ignore', out, out] })
      closeSync(out)
      await new Promise((resolve, reject) => child.once('spawn', resolve).once('error', reject))
      guard.stdin.write(`${child.pid}\n`)
      child.unref()
      return child
    }
    /** Waits for something that a daemon must do, and fails if the daemon ends before that. */
    const whenAlive = async <T>(child: ChildProcess, name: string, work: Promise<T>) => {
      const ended = new Promise<never>((_, reject) => {
        child.once('exit', code => {
          const said = [`${name}.out`, `run/${name}.log`].map(file =>
            existsSync(join(dir, file)) ? readFileSync(join(dir, file), 'utf8') : '',
          )
          reject(
            new Error(
              `${name} of the test's S3 store ended with code ${code}:\n${said.join('').trimEnd().split('\n').slice(-25).join('\n')}`,
            ),
          )
        })
      })
      return await Promise.race([work, ended])
    }

    await tool('monmaptool', '--create', '--fsid', fsid, '--addv', 'a', `[v2:127.0.0.1:${monitor}]`, join(dir, 'monmap'))
    await tool('ceph-mon', '-c', conf, '-i', 'a', '--mkfs', '--monmap', join(dir, 'monmap'))
    const mon = await daemon('ceph-mon', 'mon.a', '-i', 'a')
    const osdId = randomUUID()
    await whenAlive(mon, 'mon.a', tool('ceph', '-c', conf, 'osd', 'new', osdId))
    await tool('ceph-osd', '-c', conf, '-i', '0', '--mkfs', '--osd-uuid', osdId)
    const osd = await daemon('ceph-osd', 'osd.0', '-i', '0')
    await whenAlive(
      osd,
      'osd.0',
      tool('ceph', '-c', conf, 'osd', 'crush', 'create-or-move', 'osd.0', '1', 'host=h', 'root=default'),
    )
    const admin = (...args: string[]) => tool('radosgw-admin', '-c', conf, '-n', 'client.rgw', ...args)
    const accessKey = 'TESTKEY'
    const secretKey = 'testsecret'
    await whenAlive(
      osd,
      'osd.0',
      admin('user', 'create', '--uid=test', '--display-name=test', `--access-key=${accessKey}`, `--secret=${secretKey}`),
    )
    const gateway = await daemon('radosgw', 'client.rgw', '-n', 'client.rgw')
    const endpoint = `http://127.0.0.1:${port}`
    await whenAlive(gateway, 'client.rgw', answers(endpoint))
    return { endpoint, accessKey, secretKey, admin, end }
  } catch (error) {
    await end()
    throw error
  }
}

async function answers(endpoint: string) {
  for (let tried = 1; ; tried++) {
    try {
      await fetch(endpoint, { signal: AbortSignal.timeout(2000) })
      return
    } catch (cause) {
      if (tried === 600) throw new Error(`the test's S3 store does not answer at ${endpoint}`, { cause })
      await sleep(100)
    }
  }
}

/** The user of the store: Debian's user ceph if this process runs as root, otherwise the user of this process. */
function storeUser() {
  if (process.getuid?.() !== 0) return undefined
  const id = (flag: string) => Number(execFileSync('id', [flag, 'ceph'], { encoding: 'utf8', stdio: 'pipe' }))
  return { uid: id('-u'), gid: id('-g') }
}

/** Ceph's configuration: one copy of everything, in memory, without authentication between the daemons, and only on loopback. */
function configuration(dir: string, fsid: string, monitor: number, port: number) {
  return `[global]
fsid = ${fsid}
mon_host = v2:127.0.0.1:${monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_mon_client_mode = crc
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_crit = 1
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
run_dir = ${dir}/run
admin_socket = ${dir}/run/$name.asok
pid_file =
log_file = ${dir}/run/$name.log
crash_dir = ${dir}/run
chdir =
mon_data = ${dir}/mon
osd_data = ${dir}/osd
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:${port}
rgw_data = ${dir}/rgw
# A changed quota or user counts at once.
rgw_cache_enabled = false
rgw_bucket_quota_ttl = 0
rgw_user_quota_bucket_sync_interval = 1
# SSE-KMS with one key, and without TLS.
rgw_crypt_s3_kms_backend = testing
rgw_crypt_s3_kms_encryption_keys = ${KMS_KEY}=${randomBytes(32).toString('base64')}
rgw_crypt_require_ssl = false
`
}

// Reads the pid of each daemon, one a line. The end of the input is the end of the store. A pid is killed only if its process
// works in the store's directory, so that another process that got the number later is never hit. The gateway is killed first.
const GUARD_SCRIPT = `
  pids=
  while read -r pid; do pids="$pid $pids"; done
  for pid in $pids; do
    if [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; then
      kill -9 "$pid"
      while [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; do sleep 0.1; done
    fi
  done 2> /dev/null
  rm -rf "$1"`
