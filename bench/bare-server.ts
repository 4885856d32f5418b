import { setTimeout as sleep } from 'node:timers/promises'
import { startProgram, type Program } from './store.ts'

/** Starts bare.ts, and waits until all its processes serve. */
export async function startBare(port: number, processes: number, kind: 'parses' | 'reads'): Promise<Program> {
  const program = startProgram('bench/bare.ts', { args: [String(port), String(processes), kind], env: {} })
  const deadline = Date.now() + 30_000
  while (!program.output().includes('ready')) {
    if (program.hasEnded() || Date.now() > deadline) {
      program.kill('SIGKILL')
      throw new Error(`the bare server did not start:\n${program.output()}`)
    }
    await sleep(20)
  }
  return program
}
