import { Bars, Chart, ticksOf, ticksTo } from './chart.tsx'
import type { Partition } from './days.ts'
import { bytes, count } from './format.ts'
import { dayOf } from './time.tsx'

const SHOWN = 120

/** What each partition takes, in the database and in the archive. */
export function Storage({ partitions, now }: { partitions: Partition[]; now: Date }) {
  const past = partitions.filter(({ range_start }) => Date.parse(range_start) <= now.getTime())
  const shown = past.slice(-SHOWN)
  if (shown.length === 0) return <p class="muted">There is no partition yet.</p>
  const online = sum(past, ({ bytes_size }) => bytes_size)
  const archived = sum(past, ({ archive_bytes }) => archive_bytes ?? 0)
  // Without today, which is not over, and without partitions that were dropped.
  const whole = past.filter(({ range_end, bytes_size }) => Date.parse(range_end) <= now.getTime() && bytes_size > 0).slice(-7)
  const growth = whole.length === 0 ? undefined : sum(whole, ({ bytes_size }) => bytes_size) / whole.length
  const tops = shown.map(({ bytes_size, archive_bytes }) => bytes_size + (archive_bytes ?? 0))
  const yTicks = ticksTo(Math.max(...tops))
  const said = `${bytes(online)} online in ${count(past.filter(({ bytes_size }) => bytes_size > 0).length)} partitions, ${bytes(archived)} archived.`
  return (
    <>
      <p>
        {said}
        {growth !== undefined && ` Recent partitions take ${bytes(growth)} each.`}
      </p>
      <Chart
        id="storage-plot"
        height={280}
        title="Size of each partition"
        description={`${dayOf(shown[0]!.range_start)} to ${dayOf(shown.at(-1)!.range_start)}: ${said}`}
        yTicks={yTicks}
        yLabel={bytes}
        xTicks={ticksOf(shown.length, 4, n => dayOf(shown[n]!.range_start))}
        series={['online', 'archived']}
      >
        <Bars
          top={yTicks.at(-1)!}
          bars={shown.map(({ range_start, bytes_size, archive_bytes }) => ({
            title: `${dayOf(range_start)}: ${bytes(bytes_size)} online, ${bytes(archive_bytes ?? 0)} archived`,
            values: [bytes_size, archive_bytes ?? 0],
          }))}
        />
      </Chart>
      <p>
        <a href="#days-rows">Each day in numbers</a>
      </p>
    </>
  )
}

function sum(partitions: Partition[], value: (partition: Partition) => number) {
  return partitions.reduce((total, partition) => total + value(partition), 0)
}
