// The suite in a worker thread.

import { parentPort, workerData } from 'node:worker_threads'
import { type Context, runAll } from './suite.ts'

parentPort?.postMessage(await runAll(workerData as Context))
