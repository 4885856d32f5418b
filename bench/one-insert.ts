// Imported before server/main.ts: the same server, but each heartbeat is a statement of its own, on as many connections as there
// are.
import { Writer } from '../server/ingest/writer.ts'

// eslint-disable-next-line @typescript-eslint/unbound-method -- called with the writer it was called on
const store = Writer.prototype.store
Writer.prototype.store = function (this: Writer, item) {
  Object.assign(this.limits, { concurrency: this.pool.max, maxBatch: 1 })
  return store.call(this, item)
}
