import type { Pool } from '../database.ts'
import { nextRun } from '../../lib/cron.ts'
import { Table } from './layout.tsx'
import { Moment } from './time.tsx'

/** A row of the view fleet.job_health. */
export interface Job {
  jobname: string
  schedule: string
  status: 'ok' | 'waiting' | 'late' | 'failed' | 'disabled' | 'missing'
  last_start: string | null
  last_status: string | null
  last_message: string | null
  last_success: string | null
}

export async function readJobs(pool: Pool) {
  return [
    ...(await pool.run(
      sql => sql<Job[]>`
    select jobname, schedule, status, last_start, last_status, last_message, last_success from fleet.job_health
  `,
    )),
  ]
}

export function Jobs({ jobs, now }: { jobs: Job[]; now: Date }) {
  return (
    <Table
      label="All jobs"
      head={['Job', 'Status', 'Last run', 'Next run', 'Schedule (GMT)']}
      rows={jobs.map(job => {
        const next = job.status === 'missing' || job.status === 'disabled' ? undefined : nextRun(job.schedule, now)
        return [
          job.jobname,
          <>
            <span class={`badge ${job.status === 'ok' ? 'ok' : job.status === 'waiting' ? 'idle' : 'fail'}`}>{job.status}</span>
            {job.status === 'failed' && <p class="muted">{job.last_message}</p>}
          </>,
          job.last_start === null ? 'never' : <Moment at={job.last_start} now={now} />,
          next === undefined ? '–' : <Moment at={next.toISOString()} now={now} />,
          <code>{job.schedule}</code>,
        ]
      })}
    />
  )
}
