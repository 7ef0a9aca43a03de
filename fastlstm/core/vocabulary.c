/* vocabulary.c - the names of all that a program can say, and of what can go wrong. */
#include "check.h"
#include "text.h"

size_t fl_vocabulary(char *text, size_t bytes) {
    fl_text to = {text, bytes, 0};
#define E(name) fl_say(&to, " " #name);
#define ENUMERATION(name, LIST) fl_say(&to, "enumeration " name); LIST(E) fl_say(&to, "\n");
    ENUMERATION("function", FL_FUNCTIONS)
    ENUMERATION("reduction", FL_REDUCTIONS)
    ENUMERATION("fold", FL_FOLDS)
    ENUMERATION("norm", FL_NORMS)
    ENUMERATION("cell", FL_CELLS)
    ENUMERATION("cell_norm", FL_CELL_NORMS)
    ENUMERATION("place", FL_PLACES)
    ENUMERATION("part", FL_PARTS)
    ENUMERATION("stored", FL_STORED)
#undef ENUMERATION
#undef E
#define F(type, name) fl_say(&to, " " #type ":" #name);
#define T(NAME, name) fl_say(&to, "table " #name); FL_##NAME##_FIELDS(F) fl_say(&to, "\n");
    FL_TABLES(T)
#undef T
#define O(NAME, name) fl_say(&to, "operation " #name); FL_##NAME##_FIELDS(F) fl_say(&to, "\n");
    FL_OPERATIONS(O)
#undef O
#undef F
    return fl_said(&to);
}

size_t fl_arity(fl_function function) {
    return function < FL_FUNCTION_add ? 1 : function < FL_FUNCTION_where ? 2 : 3;
}

const char *fl_operation_name(fl_kind kind) {
    static const char *const names[] = {
#define O(NAME, name) #name,
        FL_OPERATIONS(O)
#undef O
    };
    return names[kind];
}

const char *fl_function_name(fl_function function) {
    static const char *const names[] = {
#define E(name) #name,
        FL_FUNCTIONS(E)
#undef E
    };
    return names[function];
}

size_t fl_type_bytes(int64_t type) {
    switch (type) {
    case FL_FLOAT32: return sizeof(float);
    case FL_FLOAT64: return sizeof(double);
    case FL_FLOAT16:
    case FL_BFLOAT16: return 2;
    case FL_INT8: return 1;
    default: return 0;
    }
}

int fl_abi(void) { return FL_ABI; }

const char *fl_error_text(fl_error error) {
    switch (error) {
    case FL_OK: return "no error";
    case FL_BAD_ARGUMENT: return "an argument of the call is not as it must be";
    case FL_BAD_PROGRAM: return "this is no program, or it is damaged: export the model anew";
    case FL_BAD_TENSORS: return "these are not the tensors that the program was made for";
    case FL_BAD_STATE: return "the state is damaged, of another model, or holds numbers that no state can hold";
    case FL_TOO_LARGE: return "this needs more memory than can be addressed";
    case FL_LITTLE_MEMORY:
        return "the memory is less than was asked for, or does not begin at a multiple of "
               "FL_ALIGNMENT";
    case FL_NO_KERNEL: return "this processor or this build has no such instruction set";
    case FL_STOPPED: return "the call was stopped before its end";
    case FL_NO_FILE: return "the file cannot be read";
    case FL_NO_MEMORY: return "there is no memory for this";
    }
    return "an unknown error";
}
