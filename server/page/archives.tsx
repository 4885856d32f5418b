import type { Partition } from './days.ts'
import { bytes, count, plural } from './format.ts'
import { Table } from './layout.tsx'
import { dayOf, Moment } from './time.tsx'

const SHOWN = 5

/** The newest archives, each with the time when it was read back and found equal. */
export function Archives({ partitions, now }: { partitions: Partition[]; now: Date }) {
  const archives = partitions.filter(({ proven_at }) => proven_at !== null).reverse()
  if (archives.length === 0) return <p class="muted">Nothing is archived yet. A day is archived when its retention has ended.</p>
  const size = archives.reduce((sum, { archive_bytes }) => sum + (archive_bytes ?? 0), 0)
  const rows = archives.reduce((sum, { archive_rows }) => sum + (archive_rows ?? 0), 0)
  return (
    <>
      <p>
        {plural(archives.length, 'archive')} with {count(rows)} rows in {bytes(size)}. Each one is read back and compared before
        its partition is dropped. They are in{' '}
        <code class="url">{archives[0]!.archive_url?.split('/').slice(0, -2).join('/')}/</code>
      </p>
      <Table
        label="List of archives"
        head={['Days', { number: 'Rows' }, { number: 'Size' }, 'Proven', 'SHA-256', 'Folder']}
        rows={archives
          .slice(0, SHOWN)
          .map(archive => [
            daysOf(archive),
            count(archive.archive_rows ?? 0),
            bytes(archive.archive_bytes ?? 0),
            <Moment at={archive.proven_at!} now={now} />,
            <code title={archive.checksum_sha256 ?? ''}>{archive.checksum_sha256?.slice(0, 12)}…</code>,
            <code title={archive.archive_url ?? ''}>{archive.archive_url?.split('/').slice(-2, -1)}/</code>,
          ])}
      />
      {archives.length > SHOWN && (
        <p class="muted">
          These are the newest {SHOWN}. To see all: <code>select * from fleet.archives;</code>
        </p>
      )}
    </>
  )
}

function daysOf({ range_start, range_end }: Partition) {
  const last = dayOf(new Date(Date.parse(range_end) - 1))
  const first = dayOf(range_start)
  return first === last ? first : `${first} to ${last}`
}
