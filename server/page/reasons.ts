const REASONS: Record<string, string> = {
  ingest_down: 'no heartbeats could be stored',
  cohort_silent: 'its cohort fell silent',
  network_silent: 'its network fell silent',
  shutdown: 'it was shut down',
  reboot: 'it was restarted',
  update: 'it was updated',
  app: 'its agent stopped',
  sleep: 'it slept for longer than it said',
  battery: 'its battery was empty',
  signal: 'its signal faded',
  unknown: 'unknown',
}

/** Why a device is silent, in words. */
export function reasonOf(reason: string | null) {
  return reason === null ? '–' : (REASONS[reason] ?? reason)
}
