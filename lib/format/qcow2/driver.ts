// The qcow2 format as a driver: what the table of drivers refers to.

import type { FormatDriver } from '../driver.ts'
import { checkCreate, createImage } from './create.ts'
import { openImage } from './image.ts'

export const qcow2: FormatDriver = { name: 'qcow2', open: openImage, checkCreate, create: createImage }
