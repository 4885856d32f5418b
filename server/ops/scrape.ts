import cluster, { type Worker } from 'node:cluster'
import { AggregatorRegistry, type Registry } from 'prom-client'

type Snapshot = Awaited<ReturnType<Registry['getMetricsAsJSON']>>

/**
 * A worker sends `ask` with its own snapshot. The first process sends `give` to the other workers, gets a `snapshot` from each,
 * and answers `all`: the snapshots of everybody except the worker that asked.
 */
type Message =
  | { scrape: 'ask' | 'snapshot'; id: number; metrics: Snapshot }
  | { scrape: 'give'; id: number }
  | { scrape: 'all'; id: number; snapshots: Snapshot[] }

/** A worker that has not answered by then hangs. Its last snapshot is used instead. */
const TIMEOUT_MS = 1_000

/**
 * The part of the first process. It keeps the last snapshot of each worker, and the totals of dead workers, so that no total
 * falls when a worker dies.
 */
export function answerScrapes() {
  const latest = new Map<Worker, Snapshot>()
  const rounds = new Map<number, { waiting: Set<Worker>; finish: () => void }>()
  const dead: Snapshot[] = []
  let folding = Promise.resolve()
  let next = 1

  cluster.on('message', (worker: Worker, message: Message) => {
    if (message.scrape === 'ask' || message.scrape === 'snapshot') latest.set(worker, message.metrics)
    if (message.scrape === 'ask') ask(worker, message.id)
    if (message.scrape === 'snapshot') answered(worker, message.id)
  })
  // This event comes after everything that the worker sent, however it died.
  cluster.on('disconnect', worker => {
    const last = latest.get(worker)
    latest.delete(worker)
    if (last !== undefined) {
      dead.push(last.filter(({ type }) => String(type) !== 'gauge'))
      folding = folding.then(fold)
    }
    for (const id of rounds.keys()) answered(worker, id)
  })

  function ask(asker: Worker, id: number) {
    const waiting = new Set(
      Object.values(cluster.workers ?? {})
        .filter(worker => worker !== undefined)
        .filter(worker => worker !== asker && worker.isConnected()),
    )
    const round = next++
    const limit = setTimeout(finish, TIMEOUT_MS)
    rounds.set(round, { waiting, finish })
    if (waiting.size === 0) finish()
    for (const worker of waiting) send(worker, { scrape: 'give', id: round })

    function finish() {
      clearTimeout(limit)
      rounds.delete(round)
      const living = [...latest].filter(([worker]) => worker !== asker).map(([, snapshot]) => snapshot)
      send(asker, { scrape: 'all', id, snapshots: [...dead, ...living] })
    }
  }

  function answered(worker: Worker, id: number) {
    const round = rounds.get(id)
    if (round?.waiting.delete(worker) && round.waiting.size === 0) round.finish()
  }

  /** Merges the snapshots of dead workers into one, so that they take the room of one. */
  async function fold() {
    const count = dead.length
    dead.splice(0, count, await AggregatorRegistry.aggregate(dead.slice(0, count)).getMetricsAsJSON())
  }
}

/**
 * The part of a worker: it sends its metrics when it is asked. Returns a function that reads the metrics of all workers; in a
 * single process, its own.
 */
export function shareMetrics(registry: Registry): () => Promise<Registry> {
  if (!cluster.isWorker) return async () => registry
  const asked = new Map<number, (snapshots: Snapshot[]) => void>()
  let next = 1

  process.on('message', (message: Message) => {
    if (message.scrape === 'give') void give(message.id)
    if (message.scrape === 'all') asked.get(message.id)?.(message.snapshots)
  })

  async function give(id: number) {
    send(process, { scrape: 'snapshot', id, metrics: await registry.getMetricsAsJSON() })
  }

  return async () => {
    const metrics = await registry.getMetricsAsJSON()
    const id = next++
    const others = await new Promise<Snapshot[]>(resolve => {
      asked.set(id, resolve)
      // If the first process is gone, this one is about to end too. Its own metrics have to do.
      setTimeout(resolve, 2 * TIMEOUT_MS, []).unref()
      if (process.connected) send(process, { scrape: 'ask', id, metrics })
      else resolve([])
    })
    asked.delete(id)
    return AggregatorRegistry.aggregate([metrics, ...others])
  }
}

/** Sends the last snapshot of a worker, so that its totals are kept to the end. */
export async function leaveMetrics(registry: Registry) {
  if (!cluster.isWorker || !process.connected) return
  const message: Message = { scrape: 'snapshot', id: 0, metrics: await registry.getMetricsAsJSON() }
  await new Promise<void>(resolve => process.send!(message, undefined, {}, () => resolve()))
}

function send(to: Pick<Worker, 'send'> | NodeJS.Process, message: Message) {
  // The receiver may be gone by now. Then nobody waits for this.
  ;(to as Pick<Worker, 'send'>).send(message, () => {})
}
