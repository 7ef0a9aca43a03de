/* source.h - a model as C whose program, sizes and packed weights are constants. */
#ifndef FL_SOURCE_H
#define FL_SOURCE_H

#include "model.h"
#include "text.h"

/* The kernel of this name as packing knows it, for floats: one that this processor, or this build,
 * need not have, and that runs nothing. NULL: there is none. */
const fl_kernel *fl_target(const char *isa);

/* Name of target `number`, or NULL behind the last. */
const char *fl_target_name(size_t number);

/* As fl_model_size and fl_model_init, for a target in the place of the config's instruction set. */
fl_error fl_model_size_for(const fl_kernel *foreign, const fl_program *program,
                           const fl_model_config *config, size_t *bytes, char *message,
                           size_t message_bytes);
fl_error fl_model_init_for(const fl_kernel *foreign, const fl_program *program,
                           const fl_model_config *config, const fl_tensor_data *tensors,
                           size_t tensor_count, void *memory, size_t memory_bytes,
                           const fl_model **made, char *message, size_t message_bytes);

/* The C that constant.h runs: its characters, of which text (bytes,) is given what there is room
 * for and a 0 behind it, unless bytes is 0. 0: a size is too large, or it is no model of floats. */
size_t fl_source(const fl_model *model, char *text, size_t bytes);

/* Bytes of scratch memory that it then takes, and rows of an output that a step, or where `ending`
 * is not 0 the end of a sequence, has at most. */
size_t fl_source_scratch(const fl_model *model);
size_t fl_source_rows(const fl_model *model, size_t output, int ending);

/* The parts of it that packing gave operation i: arrays, and the struct. */
void fl_put_packed(fl_text *to, size_t i, const fl_operation *op, const fl_packed *packed,
                   size_t lanes);
void fl_say_packed(fl_text *to, size_t i, const fl_operation *op, const fl_packed *packed);

#endif
