// Measures what processes and the machine use, from Linux's /proc.
import { readdir, readFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'

/** USER_HZ, which is 100 wherever Linux runs. */
const TICKS_PER_SECOND = 100

export interface Usage {
  /** CPU seconds since each process started, including children that have ended. */
  cpuSeconds: number
  rssMb: number
  count: number
}

/** The usage of a process and all its descendants. */
export async function usageOf(root: number): Promise<Usage> {
  const ours = await treeOf(root)
  const rss = await Promise.all(ours.map(({ pid }) => readRss(pid)))
  return {
    cpuSeconds: ours.reduce((sum, { ticks }) => sum + ticks, 0) / TICKS_PER_SECOND,
    rssMb: rss.reduce((sum, kb) => sum + kb, 0) / 1024,
    count: ours.length,
  }
}

/** The process of the Postgres server with this data directory. */
export async function postmasterOf(data: string) {
  return Number((await readFile(join(data, 'postmaster.pid'), 'utf8')).split('\n')[0])
}

/** CPU seconds of the children of this process that have ended, and of their descendants. */
export async function endedCpuSeconds() {
  const text = await readFile('/proc/self/stat', 'utf8')
  const [user = 0, system = 0] = fieldsOf(text).slice(13, 15)
  return (user + system) / TICKS_PER_SECOND
}

/** A process, if it exists, and all its descendants. */
export async function treeOf(root: number) {
  const found = await Promise.all((await readdir('/proc')).filter(name => /^\d+$/.test(name)).map(readStat))
  const processes = found.filter(process => process !== undefined)
  const tree = new Set([root])
  // A child's pid may be lower than its parent's, so this repeats until nothing is added.
  for (let size = 0; size < tree.size;) {
    size = tree.size
    for (const { pid, parent } of processes) if (tree.has(parent)) tree.add(pid)
  }
  return processes.filter(({ pid }) => tree.has(pid))
}

/** Returns a function that gives the percentage of their time that the processors have waited for a disk since this call. */
export async function iowait() {
  const before = await readCpu()
  return async () => {
    const now = await readCpu()
    const all = now.all - before.all
    return all > 0 ? (100 * (now.iowait - before.iowait)) / all : 0
  }
}

/** Returns a function that gives the bytes that the machine has read from its disks since this call. */
export async function diskReads() {
  const before = await readPagedIn()
  return async () => (await readPagedIn()) - before
}

/** CPU seconds within `seconds` as a percentage of all processors. */
export function cpuPercent(cpuSeconds: number, seconds: number) {
  return (100 * cpuSeconds) / (seconds * availableParallelism())
}

async function readStat(pid: string) {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
  if (text === undefined) return undefined
  const fields = fieldsOf(text)
  const ticks = fields.slice(11, 15).reduce((sum, value) => sum + value, 0)
  return { pid: Number(pid), parent: fields[1] ?? 0, ticks }
}

/** The name, in brackets, may contain anything. See proc(5): state, ppid, …, utime, stime, cutime, cstime. */
function fieldsOf(stat: string) {
  return stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
}

async function readRss(pid: number) {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0)
}

async function readCpu() {
  const [first = ''] = (await readFile('/proc/stat', 'utf8')).split('\n', 1)
  // user nice system idle iowait irq softirq steal. The guest times are already included in user.
  const times = first.trim().split(/\s+/).slice(1, 9).map(Number)
  return { all: times.reduce((sum, value) => sum + value, 0), iowait: times[4] ?? 0 }
}

async function readPagedIn() {
  return 1_024 * Number(/^pgpgin (\d+)$/m.exec(await readFile('/proc/vmstat', 'utf8'))?.[1])
}
